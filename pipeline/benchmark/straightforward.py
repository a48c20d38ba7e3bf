"""HieraVid's frame level as one would first write it, to measure against: plain torch, nothing wasted on purpose.

One kernel over all live tokens, then the sequential recursion in one segment after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def select_straightforwardly(
    features: torch.Tensor,
    relevance: torch.Tensor,
    lengths: Sequence[int],
    counts: Sequence[int],
    epsilon: float = 1e-6,
) -> list[torch.Tensor]:
    """Rows to keep of `features` [N, d] in each segment, [k] int64 in the order in which they are chosen.

    `relevance` is [N] float32 > 0; segment i has lengths[i] rows and keeps counts[i] of them.
    """
    units = F.normalize(features.float(), dim=1)
    kernel = units @ units.T
    kernel *= relevance.unsqueeze(1)
    kernel *= relevance
    kernel.diagonal().copy_(relevance * relevance)  # a cosine with itself is 1 without rounding
    kept, start = [], 0
    for length, count in zip(lengths, counts, strict=True):
        end = start + length
        kept.append(start + _greedy_map(kernel[start:end, start:end], relevance[start:end], count, epsilon))
        start = end
    return kept


def _greedy_map(kernel: torch.Tensor, relevance: torch.Tensor, count: int, epsilon: float) -> torch.Tensor:
    """`count` items of `kernel` [n, n] in the order of the recursion (Chen et al. 2018); past its rank by relevance."""
    gains = kernel.diagonal().clone()
    stop = epsilon * gains.max()
    factors = kernel.new_empty(count, len(gains))
    order = torch.empty(count, dtype=torch.int64, device=kernel.device)
    for step in range(count):
        gain, item = gains.max(0)
        past = factors[:step]
        # Below the stop all factors are zero and the item is named again and again, until the filling below.
        scale = torch.where(gain >= stop, gain, torch.inf).rsqrt()
        factor = factors[step]
        torch.mul(torch.addmv(kernel[item], past.T, past[:, item], alpha=-1), scale, out=factor)
        gains -= factor * factor
        gains[item] = torch.where(gain >= stop, -torch.inf, gain)
        order[step] = item
    taken = gains.isneginf()
    by_relevance = relevance.masked_fill(taken, -torch.inf).argsort(descending=True, stable=True)
    place = torch.arange(count, device=kernel.device)
    number = taken.sum()
    return torch.where(place < number, order, by_relevance[(place - number).clamp_min(0)])
