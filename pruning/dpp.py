"""Greedy MAP inference of a determinantal point process (Chen et al. 2018), batched."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def greedy_map(
    kernel: torch.Tensor,
    counts: Sequence[int],
    sizes: Sequence[int] | None = None,
    relevance: torch.Tensor | None = None,
    epsilon: float = 1e-6,
) -> torch.Tensor:
    """Choose `counts[b]` diverse items from each kernel; True where chosen, [B, n] bool.

    `kernel` is [B, n, n], positive semidefinite. Where `sizes` says so, only the first sizes[b] items
    of a row are real and the rest is padding, whatever it holds (it must be finite); counts ≤ sizes.
    All rows take one step at a time: the item of largest d² (ties by index), where d²_i starts as
    K_ii and loses e_i² at each step, e_i = (K_ji − Σ_t c_tj·c_ti) / √d²_j. A row stops once that
    d² falls below `epsilon` · max K_ii, as past the kernel's rank it is rounding noise, and fills
    its count by `relevance` [B, n] (default: K_ii; ties by index).
    Rows in descending order of counts cost least: finished ones at the end are left out.
    """
    batch, n, _ = kernel.shape
    device = kernel.device
    wanted = torch.tensor(counts, device=device).unsqueeze(1)
    if sizes is None:
        padding = torch.zeros(batch, n, dtype=torch.bool, device=device)
    else:
        padding = torch.arange(n, device=device) >= torch.tensor(sizes, device=device).unsqueeze(1)
    diagonal = kernel.diagonal(dim1=1, dim2=2)
    gains = diagonal.masked_fill(padding, -torch.inf)
    stop = epsilon * gains.amax(1, keepdim=True)
    steps = max(counts)
    factors = kernel.new_empty(batch, steps, n)
    last_row = {count: b + 1 for b, count in enumerate(counts)}
    for step in range(steps):
        active = max(end for count, end in last_row.items() if count > step)
        gain, item = gains[:active].max(1, keepdim=True)
        alive = (gain >= stop[:active]) & (gain > 0) & (wanted[:active] > step)
        column = item.unsqueeze(2)
        row = kernel[:active].gather(1, column.expand(-1, 1, n))
        if step:
            past = factors[:active, :step]
            weights = past.gather(2, column.expand(-1, step, 1))
            row = torch.baddbmm(row, weights.transpose(1, 2), past, alpha=-1)
        factor = factors[:active, step]
        torch.mul(row.squeeze(1), torch.where(alive, gain, torch.inf).rsqrt(), out=factor)
        gains[:active].addcmul_(factor, factor, value=-1)
        # Taken items drop out at -inf; a row that is not alive gets back what it had.
        gains[:active].scatter_(1, item, torch.where(alive, -torch.inf, gain))
    taken = gains.isneginf() & ~padding
    fill_by = diagonal if relevance is None else relevance
    order = fill_by.masked_fill(taken | padding, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=device).expand(batch, n))
    return taken | (place < wanted - taken.sum(1, keepdim=True))
