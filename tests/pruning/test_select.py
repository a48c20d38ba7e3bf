import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import select
from pruning.blocks import Blocks, padded_size
from pruning.kernels import _matrix, block_kernels, project
from pruning.select import select_tokens
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


@pytest.mark.parametrize("max_block", [None, 60])
def test_no_block_is_larger_than_memory_allows(max_block, monkeypatch):
    args = [tokens(103, 16, 0)], [torch.ones(103)], [[103]], [[41]]
    (expected,) = select_tokens(*args, 25, 1e-6)
    monkeypatch.setattr(select, "LARGEST_BLOCK", 25)
    (keep,) = select_tokens(*args, max_block, 1e-6)
    assert torch.equal(keep, expected)


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
    assert [padded_size(2**k) for k in range(12)] == [2**k for k in range(12)]


def test_tiny_weights_do_not_underflow():
    feature = torch.eye(4).repeat(1, 1)
    tiny = torch.tensor([1e-30, 4e-30, 3e-30, 2e-30])
    (keep,) = select_tokens([feature], [tiny], [[4]], [[2]], None, 1e-6)
    assert keep.tolist() == [1, 2]


def test_many_blocks_are_cut_into_batches(monkeypatch):
    feature = tokens(200, 8, 0)
    arguments = ([feature], [weights(200, 0)], [[20] * 10], [[7, 3] * 5], None, 1e-6)
    (whole,) = select_tokens(*arguments)
    monkeypatch.setattr("pruning.select._KERNELS_CPU", 1)
    monkeypatch.setattr("pruning.kernels.numbers_at_once", lambda device: 1)
    (cut,) = select_tokens(*arguments)
    assert torch.equal(whole, cut)


@pytest.mark.parametrize("selection", ["relevance", "uniform"])
def test_other_selections_equal_the_plain_reference_and_build_no_kernels(selection, monkeypatch):
    monkeypatch.setattr("pruning.select.block_kernels", None)
    lengths = [[40, 3, 17, 0, 9], [1], [25, 26], [12, 12, 12]]
    counts = [[13, 3, 4, 0, 0], [1], [5, 25], [0, 12, 1]]
    features = [tokens(sum(n), 4, i) for i, n in enumerate(lengths)]
    relevances = [(4 * weights(sum(n), i)).round() for i, n in enumerate(lengths)]  # with many ties
    keeps = select_tokens(features, relevances, lengths, counts, 8, 1e-6, None, selection)
    for keep, rel, n, k in zip(keeps, relevances, lengths, counts, strict=True):
        assert keep.tolist() == reference.select(None, rel.tolist(), n, k, selection=selection)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(0, 60), st.floats(0, 1)), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_evenly_spaced_rows_are_the_middles_of_even_parts(sizes, seed):
    lengths = [n for n, _ in sizes]
    counts = [round(share * n) for n, share in sizes]
    (keep,) = select_tokens(
        [torch.zeros(sum(lengths), 1)], [torch.zeros(sum(lengths))], [lengths], [counts], None, 1e-6, None, "uniform"
    )
    assert keep.tolist() == reference.select(None, None, lengths, counts, selection="uniform")


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=6),
    max_block=st.sampled_from([None, 7, 16]),
    projection=st.sampled_from([None, 3, 64]),
    flaw=st.sampled_from(["none", "zero", "equal", "inf", "nan", "huge"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_any_features_of_any_dtype_keep_exactly_the_asked_number(sizes, max_block, projection, flaw, dtype, seed):
    lengths = [n for n, _ in sizes]
    counts = [round(share * n) for n, share in sizes]
    n = sum(lengths)
    feature = tokens(n, 8, seed)
    flawed = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.4
    if flaw == "equal":
        feature[:] = 1.5
    elif flaw == "huge":
        feature *= 6e4 / feature.abs().max() if n else 1
    elif flaw != "none":
        feature[flawed] = {"zero": 0.0, "inf": torch.inf, "nan": torch.nan}[flaw]
    rel = weights(n, seed) * (torch.rand(n, generator=torch.Generator().manual_seed(seed + 1)) < 0.8)
    (keep,) = select_tokens([feature.to(dtype)], [rel], [lengths], [counts], max_block, 1e-6, projection)
    owner = torch.repeat_interleave(torch.tensor(lengths))[keep]
    assert owner.bincount(minlength=len(lengths)).tolist() == counts
    assert keep.diff().gt(0).all()


@pytest.mark.parametrize("flaw", [0.0, torch.inf, torch.nan])
def test_a_vector_that_is_none_goes_last_and_disturbs_no_other(flaw):
    feature = tokens(30, 64, 0)
    feature[[3, 17]] = flaw
    (keep,) = select_tokens([feature], [weights(30, 0)], [[30]], [[12]], None, 1e-6)
    sound = [i for i in range(30) if i not in (3, 17)]
    (alone,) = select_tokens([feature[sound]], [weights(30, 0)[sound]], [[28]], [[12]], None, 1e-6)
    assert keep.tolist() == [sound[i] for i in alone.tolist()]


def test_a_video_keeps_the_same_in_any_company():
    lengths = [[700, 40, 3, 300], [90], [300, 510]]
    counts = [[210, 13, 1, 290], [30], [100, 170]]
    features = [tokens(sum(n), 96, i) for i, n in enumerate(lengths)]
    relevances = [weights(sum(n), i) for i, n in enumerate(lengths)]
    together = select_tokens(features, relevances, lengths, counts, 512, 1e-6)
    for i, keep in enumerate(together):
        alone = select_tokens(
            features[i : i + 1], relevances[i : i + 1], lengths[i : i + 1], counts[i : i + 1], 512, 1e-6
        )
        assert torch.equal(keep, alone[0])


def test_kernels_hold_weighted_cosines_inside_their_blocks():
    feature, rel = tokens(500, 24, 3), weights(500, 3)
    blocks = Blocks(torch.tensor([10, 320, 475]), torch.tensor([300, 150, 25]), torch.tensor([1, 1, 1]))
    kernel, scaled, rows = block_kernels(feature, rel, blocks, 362)
    for b, (start, size) in enumerate([(10, 300), (320, 150), (475, 25)]):
        part = slice(start, start + size)
        assert rows[b, :size].tolist() == list(range(start, start + size))
        torch.testing.assert_close(scaled[b, :size], rel[part] / rel[part].max())
        expected = cosine(feature[part, None], feature[None, part]) * scaled[b, :size, None] * scaled[b, None, :size]
        torch.testing.assert_close(kernel[b, :size, :size], expected)
        assert torch.equal(kernel[b], kernel[b].T)
        assert not kernel[b, size:].any()
        assert not scaled[b, size:].any()


def test_a_projection_nearly_keeps_cosines_and_never_changes():
    feature = tokens(60, 2048, 0) + 2 * tokens(1, 2048, 1)
    first = project(feature, 512)
    assert first.shape == (60, 512)
    error = cosine(first[:, None], first[None]) - cosine(feature[:, None], feature[None])
    assert 0.005 < error.abs().max() < 0.25
    _matrix.cache_clear()
    torch.manual_seed(1)
    assert torch.equal(project(feature, 512), first)
    assert torch.equal(project(feature, 2048), feature)


def test_cosines_of_zero_and_non_finite_vectors_are_zero():
    vectors = torch.tensor([[0.0, 0.0], [float("inf"), 1.0], [float("nan"), 1.0], [3.0, 4.0]])
    assert unit(vectors)[:3].tolist() == [[0.0, 0.0]] * 3
    assert cosine(vectors, vectors[3:].expand(4, 2)).tolist() == pytest.approx([0, 0, 0, 1])
    large = torch.full((2, 4096), 250.0, dtype=torch.float16)
    assert cosine(large[0], large[1]).item() == pytest.approx(1, abs=1e-5)
