import pytest
import torch

from pruning.merge import merge_repeats
from pruning.segments import segment_video
from tests.pruning import reference
from tests.pruning.videos import scenes


def merge(tokens, grid, keep, across=False):
    cut = segment_video(tokens, grid, 0.6, 0.4)
    return merge_repeats(tokens, cut.similarity, cut.starts, keep, across)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("keep", [1, 12, 25, 49])
@pytest.mark.parametrize("constants", [(), (1, 4)])
def test_runs_and_means_equal_the_plain_reference(seed, across, keep, constants):
    tokens, grid = scenes([4, 1, 5], 5, seed=seed, constants=constants)
    plain = tokens.double().tolist()
    starts = reference.segment_starts(plain, 10, 5, constants)
    merged = merge(tokens, grid, keep, across)
    expected_rows, expected_values = reference.merge(plain, 10, 5, starts, keep, across)
    assert merged.rows.tolist() == expected_rows
    torch.testing.assert_close(merged.values, torch.tensor(expected_values, dtype=torch.float32))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("keep", [1, 12, 49])
def test_every_token_lives_on_in_the_head_of_its_run(seed, across, keep):
    tokens, grid = scenes([4, 1, 5], 5, seed=seed)
    merged = merge(tokens, grid, keep, across)
    heads = set(merged.rows.tolist())
    expected = []
    for token in range(50):
        expected.append(token if token in heads else expected[token - 5])
    assert merged.into.tolist() == expected
    # So the values are the means over the tokens that name a head.
    counts = merged.into.bincount(minlength=50)
    means = torch.zeros_like(tokens).index_add(0, merged.into, tokens)[merged.rows] / counts[merged.rows, None]
    torch.testing.assert_close(merged.values, means)


def test_a_run_becomes_the_plain_mean_of_its_tokens():
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]])
    similarity = torch.tensor([[0.9], [0.95], [0.1]])
    merged = merge_repeats(tokens, similarity, (0,), 2, False)
    assert merged.rows.tolist() == [0, 3]
    torch.testing.assert_close(merged.values, torch.tensor([[1.0, 0.1], [0.0, 1.0]]))


def test_the_most_alike_merge_first_and_ties_go_by_index():
    tokens = torch.arange(12.0).reshape(6, 2)
    similarity = torch.tensor([[0.5, 0.7], [0.7, 0.2]])
    assert merge_repeats(tokens, similarity, (0,), 5, False).rows.tolist() == [0, 1, 2, 4, 5]
    assert merge_repeats(tokens, similarity, (0,), 4, False).rows.tolist() == [0, 1, 2, 5]
    assert merge_repeats(tokens, similarity, (0,), 3, False).rows.tolist() == [0, 1, 5]


def test_nothing_merges_across_a_cut_unless_allowed():
    tokens = torch.ones(3, 2)
    similarity = torch.ones(2, 1)
    assert merge_repeats(tokens, similarity, (0, 1), 1, False).rows.tolist() == [0, 1]
    assert merge_repeats(tokens, similarity, (0, 1), 1, True).rows.tolist() == [0]


def test_all_tokens_kept_leaves_values_alone():
    tokens, grid = scenes([4], 3)
    merged = merge(tokens, grid, 12)
    assert merged.rows.tolist() == merged.into.tolist() == list(range(12))
    assert merged.values is None


def test_as_many_segments_as_frames_merge_nothing():
    tokens, grid = scenes([1] * 5, 3)
    merged = merge(tokens, grid, 4)
    assert merged.rows.tolist() == merged.into.tolist() == list(range(15))
    assert merged.values is None


def test_unmerged_tokens_keep_their_exact_values():
    tokens, grid = scenes([3, 3], 4, seed=5)
    half = tokens.half()
    merged = merge(half, grid, 20)
    rows, values = merged.rows.tolist(), merged.values
    alone = [i for i, row in enumerate(rows) if row + 4 in rows or row >= 20]
    assert values.dtype == torch.float16
    assert len(alone) >= 8
    assert torch.equal(values[alone], half[[rows[i] for i in alone]])


def test_long_float16_runs_are_averaged_in_float32():
    tokens = torch.full((300, 1), 60000.0, dtype=torch.float16)
    merged = merge_repeats(tokens, torch.ones(299, 1), (0,), 1, False)
    assert merged.rows.tolist() == [0]
    assert merged.values.tolist() == [[60000.0]]


@pytest.mark.parametrize("rows_at_once", [1, 3, 10, 49])
@pytest.mark.parametrize("across", [False, True])
def test_runs_widened_a_few_at_a_time_have_the_same_means(monkeypatch, rows_at_once, across):
    tokens, grid = scenes([4, 1, 5], 5, noise=0.3, seed=1)
    tokens = tokens.bfloat16()
    together = merge(tokens, grid, 12, across)
    monkeypatch.setattr("pruning.merge.numbers_at_once", lambda device: rows_at_once * tokens.shape[1])
    piecewise = merge(tokens, grid, 12, across)
    assert torch.equal(piecewise.rows, together.rows)
    assert torch.equal(piecewise.values, together.values)
