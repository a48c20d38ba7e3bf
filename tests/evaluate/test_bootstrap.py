"""Intervals hold what they promise on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluate.bootstrap import DRAWS, clip_draws, ratio

ASKED = 5


def drawn_clips(rng: np.random.Generator, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """Right answers of two methods: hard clips are hard for both, and the second loses a tenth of its answers."""
    ease = rng.beta(4, 1, clips)
    first = rng.binomial(ASKED, ease)
    return first, rng.binomial(first, 0.9)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        first, second = drawn_clips(rng, 120)
        share = ratio(second, first)
        held += share.low <= 0.9 <= share.high
    assert 0.90 <= held / 200 <= 0.99


def test_a_paired_difference_is_tighter_than_two_separate_intervals() -> None:
    first, second = drawn_clips(np.random.default_rng(2), 200)
    asked = np.full(200, ASKED)
    paired = ratio(first - second, asked)
    shuffled = ratio(first - np.random.default_rng(3).permutation(second), asked)
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


def test_questions_of_one_clip_count_as_one_draw() -> None:
    """Five copies of a question say no more than one: the interval must not shrink."""
    right = np.random.default_rng(4).integers(0, 2, 100)
    one = ratio(right, np.ones(100, int))
    five = ratio(5 * right, np.full(100, 5))
    assert (five.low, five.high) == pytest.approx((one.low, one.high))


def test_the_value_is_the_ratio_of_sums_and_draws_repeat() -> None:
    right, asked = np.array([3, 0, 5, 1]), np.array([5, 5, 5, 2])
    first, again = ratio(right, asked), ratio(right, asked)
    assert first.value == 9 / 17
    assert first == again
    assert first.low <= first.value <= first.high


def test_every_draw_takes_as_many_clips_as_there_are() -> None:
    assert clip_draws(30).shape == (DRAWS, 30)
    assert (clip_draws(30).sum(1) == 30).all()


def test_nothing_counted_gives_no_number() -> None:
    nothing = ratio(np.zeros(3, int), np.zeros(3, int))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_a_kind_that_some_draws_miss_still_gets_an_interval() -> None:
    share = ratio(np.array([1, 0, 0, 0]), np.array([1, 0, 0, 0]))
    assert (share.value, share.low, share.high) == (1.0, 1.0, 1.0)


def test_lists_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        ratio(np.ones(3), np.ones(4))
