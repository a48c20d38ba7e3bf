import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.budget import apportion, split_budgets
from tests.pruning import reference


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(0, 200), min_size=1, max_size=30).filter(any))
    values = draw(st.lists(st.floats(-1, 1), min_size=len(lengths), max_size=len(lengths)))
    return lengths, draw(st.integers(1, sum(lengths))), values, reference.z_scores(values)


def split_budget(lengths, total, values, scores, exact):
    (counts,) = split_budgets([lengths], [total], [values], [scores], exact)
    return counts


@settings(max_examples=100, deadline=None)
@given(videos=st.lists(cases(), min_size=1, max_size=5), exact=st.booleans())
def test_counts_add_up_and_fit_and_equal_the_plain_reference(videos, exact):
    for (lengths, total, values, scores), counts in zip(
        videos, split_budgets(*zip(*videos, strict=True), exact), strict=True
    ):
        assert sum(counts) == total
        assert all(0 <= k <= n for k, n in zip(counts, lengths, strict=True))
        if total >= sum(n > 0 for n in lengths):
            assert all(k >= 1 for k, n in zip(counts, lengths, strict=True) if n)
        assert counts == reference.budgets(lengths, total, values, scores, exact)


def test_equal_scores_share_evenly():
    assert split_budget([100, 50, 10], 80, [0.1] * 3, [0.0] * 3, True) == [50, 25, 5]


def test_a_higher_value_keeps_more():
    counts = split_budget([100, 100], 60, [0.2, 0.6], [-1.0, 1.0], True)
    assert counts == [20, 40]


def test_solving_for_the_mean_share_beats_scaling_when_sizes_differ():
    # κ = 0.3. Exact: κ' + 0.1 and κ' − 0.1 with 900·(κ'+.1) + 100·(κ'−.1) = 300, so κ' = .22.
    assert split_budget([900, 100], 300, [1, 0], [1.0, -1.0], True) == [288, 12]
    # Author: .4 and .2 of each, 380 in all, scaled to 300.
    assert split_budget([900, 100], 300, [1, 0], [1.0, -1.0], False) == [284, 16]


def test_shares_are_clipped():
    # z = −2 would ask for a negative share; it stays at 0.05.
    counts = split_budget([100] * 5, 75, [0, 1, 1, 1, 1], [-2.0, 0.5, 0.5, 0.5, 0.5], True)
    assert counts[0] == 5
    assert sum(counts) == 75


def test_bounds_widen_to_contain_the_stage_share():
    assert split_budget([100, 100], 196, [0, 1], [-1.0, 1.0], True) == [98, 98]
    assert split_budget([100, 100], 4, [0, 1], [-1.0, 1.0], True) == [2, 2]


def test_too_few_tokens_leave_the_lowest_values_empty():
    assert split_budget([10, 10, 10, 10], 2, [0.3, 0.1, 0.9, 0.2], [0.0] * 4, True) == [1, 0, 1, 0]
    assert split_budget([10, 10, 10], 2, [0.5, 0.5, 0.5], [0.0] * 3, True) == [1, 1, 0]


def test_an_emptied_segment_stays_empty():
    assert split_budget([10, 0, 10], 4, [0.1, 0.9, 0.1], [0.0] * 3, True) == [2, 0, 2]


def apportioned(wanted, total, most):
    wanted, most = torch.tensor([wanted], dtype=torch.float64), torch.tensor([most], dtype=torch.float64)
    return apportion(wanted, torch.tensor([[total]], dtype=torch.float64), most).tolist()[0]


def test_largest_remainders_first_then_index():
    assert apportioned([2.5, 3.7, 1.8], 8, [10, 10, 10]) == [2, 4, 2]
    assert apportioned([2.5, 2.5, 3.0], 8, [10, 10, 10]) == [3, 2, 3]
    assert apportioned([0.2, 0.3, 9.5], 10, [5, 5, 10]) == [1, 1, 8]
    assert apportioned([5.5, 4.5], 10, [5, 9]) == [5, 5]


def test_an_impossible_split_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        split_budget([2, 2], 5, [0.0, 0.0], [0.0, 0.0], True)


def test_whole_shares_stay_whole():
    # Symmetric scores: the middle segment's share is κ, a whole number where 3 divides the total.
    scores = reference.z_scores([0.1, 0.2, 0.3])
    for middle in range(16, 74):
        counts = split_budget([90, 90, 90], 3 * middle, [0.1, 0.2, 0.3], scores, True)
        assert counts == [middle - 11, middle, middle + 11]
