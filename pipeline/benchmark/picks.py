"""Whether two selections are the same but for decisions that rounding may turn either way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning.blocks import Blocks
from pruning.dpp import greedy_map
from pruning.kernels import block_kernels
from pruning.vectors import unit

MARGIN = 1e-5


def agree(
    features: torch.Tensor,
    relevance: torch.Tensor,
    blocks: Blocks,
    ours: torch.Tensor,
    others: Sequence[torch.Tensor],
    epsilon: float,
) -> tuple[bool, float]:
    """True if the rows `ours` [K] are those of `others` (one tensor a block, in order of choice) within the margin.

    Where a block's rows differ, the first step at which the two recursions part is found, and the
    gains of the two items are compared: they may differ by `MARGIN` of the kernel's largest diagonal.
    Also returns the largest such difference, 0 if all rows are equal.
    """
    worst = 0.0
    for b, (start, size) in enumerate(zip(blocks.starts.tolist(), blocks.sizes.tolist(), strict=True)):
        mine = ours[(ours >= start) & (ours < start + size)]
        if not torch.equal(mine, others[b].sort().values):
            worst = max(worst, _margin_at_parting(features, relevance, blocks[b : b + 1], others[b] - start, epsilon))
    return worst < MARGIN, worst


def _margin_at_parting(
    features: torch.Tensor, relevance: torch.Tensor, block: Blocks, order: torch.Tensor, epsilon: float
) -> float:
    """|gain − gain| / largest diagonal of the two items that are taken at the first step that differs.

    `order` [k] is the other side's order of choice. Picks of greedy MAP are nested, so our first t picks are
    those of a selection of t; the first t that differs is found by bisection. Gains are taken in float64.
    """
    size = int(block.sizes)
    kernel, weights, _ = block_kernels(features, relevance, block, size)

    def first(count: int) -> set[int]:
        return set(greedy_map(kernel, [count], None, weights, epsilon)[0].nonzero().squeeze(1).tolist())

    same, differs = 0, len(order)
    while differs - same > 1:
        middle = (same + differs) // 2
        if first(middle) == set(order[:middle].tolist()):
            same = middle
        else:
            differs = middle
    (mine,) = first(differs) - set(order[:same].tolist())
    gains = _gains_after(features[block.starts : block.starts + size], weights[0], order[:same])
    return abs(float(gains[mine] - gains[order[same]])) / float((weights * weights).max())


def _gains_after(features: torch.Tensor, weights: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """d² of all items once `taken` are chosen: K_ii less what the taken ones explain, [n] float64."""
    rows = unit(features).double() * weights.double().unsqueeze(1)
    diagonal = weights.double().square()
    if not len(taken):
        return diagonal
    chosen = rows[taken]
    gram = chosen @ chosen.T
    gram.diagonal().copy_(diagonal[taken])
    explained = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), chosen @ rows.T, upper=False)
    return diagonal - explained.square().sum(0)
