import itertools

import pytest
import torch

from pruning.select import padded_size, select_tokens
from pruning.vectors import cosine, unit
from tests.pruning import reference


def tokens(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def weights(n, seed):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed + 99)) + 0.05


@pytest.mark.parametrize("max_block", [None, 1024, 8])
def test_equals_the_plain_reference_video_by_video(max_block):
    lengths = [[40, 3, 17, 0, 9], [1], [25, 26], [12, 12, 12]]
    counts = [[13, 3, 4, 0, 0], [1], [5, 25], [0, 12, 1]]
    features = [tokens(sum(n), 24, i) for i, n in enumerate(lengths)]
    relevances = [weights(sum(n), i) for i, n in enumerate(lengths)]
    keeps = select_tokens(features, relevances, lengths, counts, max_block, 1e-6)
    for keep, feature, rel, n, k in zip(keeps, features, relevances, lengths, counts, strict=True):
        expected = reference.select(feature.double().tolist(), rel.double().tolist(), n, k, max_block)
        assert keep.dtype == torch.int64
        assert keep.tolist() == expected


def test_long_segments_are_split_evenly():
    feature = tokens(103, 16, 0)
    (keep,) = select_tokens([feature], [torch.ones(103)], [[103]], [[41]], 25, 1e-6)
    # Five pieces of 21, 21, 21, 20, 20 tokens keep 9, 8, 8, 8, 8.
    edges = [0, 21, 42, 63, 83, 103]
    inside = [int(((keep >= a) & (keep < b)).sum()) for a, b in itertools.pairwise(edges)]
    assert inside == [9, 8, 8, 8, 8]


def test_a_piece_never_keeps_more_than_it_has():
    for n in range(2, 40):
        for k in range(1, n + 1):
            (keep,) = select_tokens([tokens(n, 4, n)], [torch.ones(n)], [[n]], [[k]], 7, 1e-6)
            assert keep.tolist() == sorted(set(keep.tolist()))
            assert len(keep) == k


def test_padding_stays_below_twice_the_square():
    for size in range(1, 5000):
        assert size <= padded_size(size)
        assert padded_size(size) ** 2 < 2 * size**2
    assert padded_size(1024) == 1024


def test_tiny_weights_do_not_underflow():
    feature = torch.eye(4).repeat(1, 1)
    tiny = torch.tensor([1e-30, 4e-30, 3e-30, 2e-30])
    (keep,) = select_tokens([feature], [tiny], [[4]], [[2]], None, 1e-6)
    assert keep.tolist() == [1, 2]


def test_many_blocks_are_cut_into_batches(monkeypatch):
    feature = tokens(200, 8, 0)
    arguments = ([feature], [weights(200, 0)], [[20] * 10], [[7, 3] * 5], None, 1e-6)
    (whole,) = select_tokens(*arguments)
    monkeypatch.setattr("pruning.select._MAX_NUMBERS", 1)
    (cut,) = select_tokens(*arguments)
    assert torch.equal(whole, cut)


def test_cosines_of_zero_and_non_finite_vectors_are_zero():
    vectors = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0], [3.0, 4.0]])
    assert unit(vectors)[:3].tolist() == [[0.0, 0.0]] * 3
    assert cosine(vectors, vectors[3:].expand(4, 2)).tolist() == pytest.approx([0, 0, 0, 1])
    large = torch.full((2, 4096), 250.0, dtype=torch.float16)
    assert cosine(large[0], large[1]).item() == pytest.approx(1, abs=1e-5)
