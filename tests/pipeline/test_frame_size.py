"""The size at which a model sees frames: one rule for whoever scales them, and a second scaling changes nothing."""

import json
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.frame_size import MAX_ASPECT_RATIO, FixedSize, TokenBudget, from_json, to_json

PUBLISHED = TokenBudget(28, 128 * 28**2, 768 * 28**2)
SIDES = st.integers(1, 9000)


@st.composite
def budgets(draw):
    side = draw(st.sampled_from([1, 8, 28, 32]))
    most = draw(st.integers(side**2, 900 * side**2))
    return TokenBudget(side, draw(st.integers(1, most)), most)


def test_a_fixed_size_is_that_of_every_frame():
    assert FixedSize(384, 336).of(1080, 1920) == (384, 336)
    assert FixedSize(384, 336).of(1, 1) == (384, 336)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((448, 560), (448, 560)),  # whole tokens within the budget
        ((450, 570), (448, 560)),  # rounded to the nearest
        ((462, 490), (448, 504)),  # 16.5 and 17.5 tokens: a half goes to the even neighbour
        ((1080, 1920), (560, 1008)),  # more than 768 tokens: rounded down after scaling
        ((90, 160), (252, 448)),  # fewer than 128: rounded up
    ],
    ids=str,
)
def test_a_token_budget_keeps_the_size_within_it_and_scales_into_it(size, seen):
    assert PUBLISHED.of(*size) == seen
    assert PUBLISHED.of(*size[::-1]) == seen[::-1]


@given(budgets(), SIDES, SIDES)
# least and most so close that the processors' own rule goes from 2 x 2 to 3 x 3 tokens and back
@example(TokenBudget(28, 7 * 28**2, 7 * 28**2), 56, 56)
@example(TokenBudget(28, 256 * 28**2, 256 * 28**2), 1799, 61)
# a strip of one row of tokens, which scaling by area alone leaves too long
@example(TokenBudget(28, 4 * 28**2, 30 * 28**2), 62, 7879)
# rounded to whole tokens, these are narrower than any frame may be
@example(PUBLISHED, 41, 8200)
@example(PUBLISHED, 54, 9000)
def test_a_size_within_the_budget_is_whole_tokens_and_final(budget, height, width):
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        return
    size = budget.of(height, width)
    assert min(size) > 0
    assert size[0] % budget.token_side == size[1] % budget.token_side == 0
    assert size[0] * size[1] <= budget.max_pixels
    assert budget.of(*size) == size


@given(st.integers(200, 9000), st.integers(200, 9000))
def test_a_frame_of_usual_shape_has_the_published_number_of_tokens(height, width):
    tokens = [side // 28 for side in PUBLISHED.of(height, width)]
    assert 128 <= tokens[0] * tokens[1] <= 768


@pytest.mark.parametrize("size", [(10, 2001), (2001, 10), (1, 500)], ids=str)
def test_a_frame_that_is_far_too_narrow_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels are narrower than 1:200"):
        PUBLISHED.of(*size)


@pytest.mark.parametrize("size", [FixedSize(384, 336), PUBLISHED], ids=str)
def test_a_rule_is_the_same_after_json(size):
    assert from_json(json.loads(json.dumps(to_json(size)))) == size


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"height": 384, "width": 384},
        {"kind": "square", "height": 384, "width": 384},
        {"kind": ["fixed"], "height": 384, "width": 384},
        {"kind": "fixed", "height": 384},
        {"kind": "fixed", "height": 384, "width": 384, "depth": 3},
        {"kind": "fixed", "height": 384, "width": "384"},
        {"kind": "fixed", "height": 384, "width": 384.0},
        {"kind": "fixed", "height": 384, "width": True},
        {"kind": "fixed", "height": 384, "width": 0},
        {"kind": "token_budget", "token_side": 28, "min_pixels": 0, "max_pixels": 784},
        {"kind": "token_budget", "token_side": 28, "min_pixels": 1, "max_pixels": 783},
        {"kind": "token_budget", "token_side": 28, "min_pixels": 2000, "max_pixels": 1999},
    ],
    ids=str,
)
def test_anything_else_is_no_rule(text):
    with pytest.raises(ValueError):
        from_json(text)


def test_a_rule_does_not_change():
    with pytest.raises(FrozenInstanceError):
        PUBLISHED.max_pixels = 1
