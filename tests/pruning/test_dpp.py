import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.dpp import greedy_map
from tests.pruning import reference


def features(batch, n, d, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(batch, n, d, generator=generator, dtype=dtype), dim=-1)


def gram(x, weights=None):
    kernel = x @ x.transpose(1, 2)
    return kernel if weights is None else kernel * weights.unsqueeze(2) * weights.unsqueeze(1)


def chosen(mask):
    return [row.nonzero().squeeze(1).tolist() for row in mask]


def greedy_by_determinant(kernel, count):
    """At each step the item whose addition makes the determinant largest."""
    items = []
    for _ in range(count):
        rest = [i for i in range(len(kernel)) if i not in items]
        items.append(max(rest, key=lambda i: torch.linalg.det(kernel[[*items, i]][:, [*items, i]]).item()))
    return sorted(items)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", range(1, 8))
def test_equals_a_brute_force_determinant_search(seed, count):
    weights = torch.rand(1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2
    kernel = gram(features(1, 8, 12, seed), weights)
    assert chosen(greedy_map(kernel, [count])) == [greedy_by_determinant(kernel[0], count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_sequential_recursion_in_padded_batches(seed, dtype):
    sizes, counts = [40, 17, 33, 5, 1], [21, 4, 33, 2, 1]
    x = features(5, 40, 48, seed, dtype)
    weights = torch.rand(5, 40, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.1
    kernel = gram(x, weights)
    mask = greedy_map(kernel, counts, sizes)
    for b, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = reference.greedy_map(kernel[b, :size, :size].double().tolist(), count)
        assert chosen(mask)[b] == sorted(expected)


def test_order_of_rows_and_company_do_not_matter():
    kernel = gram(features(4, 30, 40, 7))
    counts, sizes = [3, 20, 11, 7], [30, 25, 20, 7]
    together = greedy_map(kernel, counts, sizes)
    for b in range(4):
        alone = greedy_map(kernel[b : b + 1, : sizes[b], : sizes[b]], [counts[b]])
        assert torch.equal(together[b, : sizes[b]], alone[0])
        assert not together[b, sizes[b] :].any()


def test_a_kernel_that_may_be_overwritten_gives_the_same_picks():
    counts = [100, 3]
    kernel = gram(features(2, 400, 420, 5))
    before = kernel.clone()
    plain = greedy_map(kernel, counts)
    assert torch.equal(kernel, before)
    assert torch.equal(greedy_map(kernel, counts, may_overwrite=True), plain)
    assert not torch.equal(kernel, before)  # or no memory was saved


def test_picks_are_nested():
    kernel = gram(features(1, 25, 30, 3))
    masks = [greedy_map(kernel, [count])[0] for count in range(1, 26)]
    for fewer, more in itertools.pairwise(masks):
        assert (fewer <= more).all()
        assert more.sum() == fewer.sum() + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_past_the_rank_the_rest_goes_by_relevance(rank, dtype):
    x = features(2, 20, rank, rank, dtype)
    weights = torch.rand(2, 20, generator=torch.Generator().manual_seed(1), dtype=dtype) + 0.5
    kernel = gram(x, weights)
    mask = greedy_map(kernel, [12, 9], relevance=weights)
    for b, count in enumerate([12, 9]):
        expected = reference.greedy_map(kernel[b].double().tolist(), count, weights[b].tolist())
        assert chosen(mask)[b] == sorted(expected)
        diverse = set(expected[:rank])
        rest = sorted(set(range(20)) - diverse, key=lambda i: -weights[b, i].item())
        assert set(expected) == diverse | set(rest[: count - rank])


def test_identical_items_go_by_index():
    kernel = torch.ones(1, 10, 10)
    assert chosen(greedy_map(kernel, [4])) == [[0, 1, 2, 3]]


def test_a_zero_kernel_goes_by_relevance_then_index():
    kernel = torch.zeros(1, 6, 6)
    assert chosen(greedy_map(kernel, [3])) == [[0, 1, 2]]
    relevance = torch.tensor([[0.1, 0.2, 0.9, 0.2, 0.0, 0.5]])
    assert chosen(greedy_map(kernel, [3], relevance=relevance)) == [[1, 2, 5]]


def test_padding_may_hold_anything_finite():
    kernel = gram(features(1, 6, 8, 0, torch.float32))
    padded = torch.full((1, 9, 9), 1e6)
    padded[:, :6, :6] = kernel
    assert chosen(greedy_map(padded, [4], [6])) == chosen(greedy_map(kernel, [4]))


def test_full_rows_and_empty_rows():
    kernel = gram(features(3, 5, 2, 0, torch.float32))
    assert greedy_map(kernel, [5, 0, 3], [5, 5, 3]).sum(1).tolist() == [5, 0, 3]


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.5])
def test_always_the_asked_number_of_items(epsilon):
    x = torch.cat([features(1, 10, 4, 0, torch.float32)] * 3, dim=1)
    for count in range(1, 31):
        assert greedy_map(gram(x), [count], epsilon=epsilon).sum() == count


def test_a_larger_epsilon_stops_sooner():
    # Cosine 0.8: after one pick the other's d² is 0.36.
    kernel = torch.tensor([[[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 0.3]]])
    assert chosen(greedy_map(kernel, [2], epsilon=0.1)) == [[0, 1]]
    assert chosen(greedy_map(kernel, [2], relevance=torch.tensor([[1.0, 0.2, 0.9]]), epsilon=0.4)) == [[0, 2]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(2))
def test_more_steps_than_a_panel_equal_the_sequential_recursion(seed, dtype):
    # Kernels are cut down on the way, rows end at different panels, and one has no rank beyond 60.
    sizes, counts = [190, 200, 170, 200, 60], [150, 130, 100, 70, 60]
    x = features(5, 200, 256, seed, dtype)
    x[3, :, 60:] = 0
    x = F.normalize(x, dim=-1)
    kernel = gram(x, torch.rand(5, 200, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.1)
    before = kernel.clone()
    mask = greedy_map(kernel, counts, sizes)
    assert torch.equal(kernel, before)
    for b, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = reference.greedy_map(kernel[b, :size, :size].double().tolist(), count)
        assert chosen(mask)[b] == sorted(expected)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.floats(0, 1)), min_size=1, max_size=4),
    rank=st.integers(1, 40),
    flaw=st.sampled_from(["none", "doubled", "zeros", "faint"]),
    seed=st.integers(0, 999),
)
def test_any_batch_equals_each_row_alone(sizes, rank, flaw, seed):
    n = max(size for size, _ in sizes)
    counts = [round(share * size) for size, share in sizes]
    x = features(len(sizes), n, rank, seed, torch.float32)
    if flaw == "doubled":
        x[:, 1::2] = x[:, : n // 2]
    elif flaw == "zeros":
        x[:, ::3] = 0
    elif flaw == "faint":
        x *= 1e-12
    kernel = gram(x)
    mask = greedy_map(kernel, counts, [size for size, _ in sizes])
    assert mask.sum(1).tolist() == counts
    for b, (size, _) in enumerate(sizes):
        assert not mask[b, size:].any()
        alone = greedy_map(kernel[b : b + 1, :size, :size], counts[b : b + 1])
        # Past the rank rounding decides, and the matrix products of another batch round otherwise.
        if rank > size:
            assert torch.equal(mask[b, :size], alone[0])


def test_the_kernel_is_left_as_it_was():
    for n, count in ((300, 120), (150, 120), (40, 39)):
        kernel = gram(features(2, n, 320, 0, torch.float32))
        before = kernel.clone()
        greedy_map(kernel, [count, 5])
        assert torch.equal(kernel, before)


def test_a_row_that_ends_early_lets_the_others_go_on():
    kernel = torch.stack([torch.ones(120, 120), torch.eye(120)])
    mask = greedy_map(kernel, [100, 90])
    assert chosen(mask) == [list(range(100)), list(range(90))]
