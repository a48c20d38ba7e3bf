import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import PruningConfig, VideoGrid, make_pruner
from pruning.schedule import (
    author_shape,
    geometric_shape,
    plan_input_only,
    plan_stages,
    round_counts,
    stage_shares,
    stages,
)

RETENTIONS = [1, 0.5, 0.3, 0.2, 0.1, 0.05]


def stage_lengths(plan):
    return [end - start for start, end in zip(plan.layers, (*plan.layers[1:], plan.num_layers), strict=True)]


def check_counts(plan, retention):
    """The promises that memory planning and packing rely on."""
    lengths = stage_lengths(plan)
    n = plan.num_tokens
    assert plan.layers[0] == 0
    assert list(plan.layers) == sorted({s * plan.num_layers // 4 for s in range(4)})
    assert all(1 <= count <= n for count in plan.counts)
    assert all(a >= b for a, b in zip(plan.counts, plan.counts[1:], strict=False))
    if retention == 1:
        assert set(plan.counts) == {n}
    total = sum(length * count for length, count in zip(lengths, plan.counts, strict=True))
    error = abs(total - retention * plan.num_layers * n)
    assert error <= max(lengths) + 1e-6 or (retention * n < 1 and set(plan.counts) == {1})
    assert plan.retention == pytest.approx(total / (plan.num_layers * n))


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.integers(1, 20_000) | st.integers(1, 60),
    layers=st.integers(1, 80),
    retention=st.sampled_from(RETENTIONS) | st.floats(1e-4, 1),
    gamma=st.none() | st.floats(0.05, 1),
)
def test_counts_keep_their_promises(tokens, layers, retention, gamma):
    shape = author_shape(retention) if gamma is None else geometric_shape(gamma)
    check_counts(plan_stages(tokens, layers, retention, shape), retention)


@pytest.mark.parametrize("retention", RETENTIONS)
@pytest.mark.parametrize("shape", ["author", "geometric"])
def test_counts_over_the_grid_of_depths(retention, shape):
    pruner = make_pruner(PruningConfig(shape=shape))
    for layers in range(1, 81):
        for grid in (VideoGrid(1, 1), VideoGrid(1, 196), VideoGrid(16, 36), VideoGrid(7, 210), VideoGrid(96, 208)):
            check_counts(pruner.plan(grid, layers, retention), retention)


@settings(max_examples=300, deadline=None)
@given(
    wanted=st.lists(st.floats(1, 50), min_size=4, max_size=4).map(lambda w: sorted(w, reverse=True))
    | st.lists(st.floats(10, 11), min_size=4, max_size=4).map(lambda w: sorted(w, reverse=True)),
    layers=st.integers(4, 80),
)
def test_rounding_is_carried_forward(wanted, layers):
    starts = [layer for _, layer in stages(layers)]
    lengths = [b - a for a, b in zip(starts, [*starts[1:], layers], strict=True)]
    counts = round_counts(wanted, lengths)
    assert counts == sorted(counts, reverse=True)
    assert all(math.floor(w) <= k <= math.floor(w) + 1 for w, k in zip(wanted, counts, strict=True))
    error = sum(n * (w - k) for n, w, k in zip(lengths, wanted, counts, strict=True))
    assert abs(error) <= max(lengths) / 2 + 1e-9


def test_rounding_passes_what_it_leaves_to_the_next_stage():
    assert round_counts([10.4, 6.4, 3.4, 1.4], [2, 2, 2, 2]) == [10, 7, 3, 2]
    assert round_counts([10.4, 10.4, 10.4, 10.4], [7, 7, 7, 7]) == [11, 11, 10, 10]


@pytest.mark.parametrize(
    ("retention", "counts"),
    [(0.3, (5000, 3500, 2450, 1050)), (0.21, (5000, 2500, 750, 150)), (0.10995, (3000, 1200, 180, 18))],
)
def test_author_tables_come_back_at_their_true_mean(retention, counts):
    assert plan_stages(10_000, 28, retention, author_shape(retention)).counts == counts


@pytest.mark.parametrize("retention", [0.15, 0.2, 0.25, 0.5, 0.9])
def test_between_author_tables_shares_are_between_too(retention):
    shares = stage_shares(author_shape(retention), [7] * 4, retention)
    means = [0.10995, 0.21, 0.30, 1.0]
    below, above = max(m for m in means if m <= retention), min(m for m in means if m > retention)
    for low, share, high in zip(author_shape(below), shares, author_shape(above), strict=True):
        assert low <= share <= high


@pytest.mark.parametrize(
    ("retention", "shares"), [(0.3, (0.552, 0.331, 0.199, 0.119)), (0.1, (0.184, 0.110, 0.066, 0.040))]
)
def test_geometric_shares(retention, shares):
    # .5515 stands as .552, so compare to the three digits that are printed.
    assert stage_shares(geometric_shape(0.6), [7] * 4, retention) == pytest.approx(shares, abs=6e-4)


def test_shares_are_clipped_at_one_and_keep_their_mean():
    shares = stage_shares(geometric_shape(0.6), [7] * 4, 0.8)
    assert shares[0] == 1
    assert sum(shares) / 4 == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("layers", "starts"),
    [
        (1, (0,)),
        (2, (0, 1)),
        (3, (0, 1, 2)),
        (4, (0, 1, 2, 3)),
        (8, (0, 2, 4, 6)),
        (28, (0, 7, 14, 21)),
        (30, (0, 7, 15, 22)),
    ],
)
def test_stage_layers(layers, starts):
    assert plan_stages(100, layers, 0.3, author_shape(0.3)).layers == starts


def test_floors_of_one_are_paid_by_the_other_stages():
    # 10 tokens a stage are owed; the last two stages alone would round to nothing.
    plan = plan_stages(100, 8, 0.1, author_shape(0.1))
    assert plan.counts[-1] == 1
    assert plan.retention == pytest.approx(0.1, abs=0.005)


def test_less_than_one_token_a_layer_keeps_one():
    assert plan_stages(5, 28, 0.05, author_shape(0.05)).counts == (1, 1, 1, 1)


@pytest.mark.parametrize("retention", RETENTIONS)
def test_input_only_plans(retention):
    for n in (1, 3, 576, 13_440):
        plan = plan_input_only(VideoGrid(n, 1), 28, retention)
        assert plan.layers == (0,)
        assert plan.counts[0] >= 1
        assert abs(plan.counts[0] - retention * n) <= 0.5 or plan.counts == (1,)


@pytest.mark.parametrize("retention", [0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("method", ["hieravid", "uniform", "random", "none"])
def test_retention_out_of_range_is_refused(retention, method):
    with pytest.raises(ValueError, match=r"retention must be in \(0, 1\]"):
        make_pruner(PruningConfig(method=method)).plan(VideoGrid(4, 4), 8, retention)


def test_empty_videos_and_decoders_are_refused():
    with pytest.raises(ValueError, match="at least 1 token"):
        plan_stages(0, 28, 0.3, author_shape(0.3))
    with pytest.raises(ValueError, match="at least 1 layer"):
        plan_stages(10, 0, 0.3, author_shape(0.3))
