"""Greedy MAP inference of a determinantal point process (Chen et al. 2018), batched and in panels."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pruning.dpp_fused import can_fuse, take_panel_fused

# Steps between two updates of the whole kernel. Longer panels read more of their own factors at each
# step, shorter ones read and write the kernel more often; 32 to 64 are about equally fast on a CPU.
PANEL = 48
# The kernel is cut down to the items still free once they are this share of it: each cut moves it once.
_CUT = 0.8


def greedy_map(
    kernel: torch.Tensor,
    counts: Sequence[int],
    sizes: Sequence[int] | None = None,
    relevance: torch.Tensor | None = None,
    epsilon: float = 1e-6,
    may_overwrite: bool = False,
) -> torch.Tensor:
    """Choose `counts[b]` diverse items from each kernel; True where chosen, [B, n] bool.

    `kernel` is [B, n, n], positive semidefinite. Where `sizes` says so, only the first sizes[b] items
    of a row are real and the rest is padding, whatever it holds (it must be finite); counts ≤ sizes.
    All rows take one step at a time: the item of largest d² (ties by index), where d²_i starts as
    K_ii and loses e_i² at each step, e_i = (K_ji − Σ_t c_tj·c_ti) / √d²_j. A row stops once that
    d² falls below `epsilon` · max K_ii, or below what rounding leaves of a row of its size: past the
    kernel's rank nothing else is left, and it would differ with the company of a batch. It then fills
    its count by `relevance` [B, n] (default: K_ii; ties by index).

    The factors c of the last `PANEL` steps are subtracted step by step; older ones are subtracted from
    the kernel once, as one matrix product (a pivoted Cholesky factorization by panels). So a step
    reads one row of the kernel and a panel, not all factors so far.
    Rows in descending order of counts cost least: finished ones at the end are left out.
    With `may_overwrite` no copy of the kernel is made, which is good for nothing afterwards.
    """
    batch, n, _ = kernel.shape
    device = kernel.device
    wanted = torch.tensor(counts, device=device)
    sizes = [n] * batch if sizes is None else sizes
    padding = torch.arange(n, device=device) >= torch.tensor(sizes, device=device).unsqueeze(1)
    diagonal = kernel.diagonal(dim1=1, dim2=2)
    gains = diagonal.masked_fill(padding, -torch.inf)
    # Rounding leaves about n units of the largest K_ii, below which LAPACK's pivoted Cholesky (pstrf) stops, too.
    unit = torch.finfo(kernel.dtype).eps / 2
    least = torch.tensor([max(epsilon, size * unit) for size in sizes], dtype=kernel.dtype, device=device)
    stop = (least * gains.amax(1)).clamp_min(torch.finfo(kernel.dtype).tiny)
    fill_by = diagonal.clone() if relevance is None else relevance
    taken = _take(kernel.contiguous(), gains, stop, wanted, _rows_by_step(counts), sizes, may_overwrite) & ~padding
    order = fill_by.masked_fill(taken | padding, -torch.inf).argsort(dim=1, descending=True, stable=True)
    place = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=device).expand(batch, n))
    return taken | (place < wanted.unsqueeze(1) - taken.sum(1, keepdim=True))


def _rows_by_step(counts: Sequence[int]) -> list[int]:
    """How many rows each step must treat: all up to the last one that wants more items than it has."""
    rows: list[int] = []
    for row in reversed(range(len(counts))):
        rows += [row + 1] * (counts[row] - len(rows))
    return rows


def _take(
    kernel: torch.Tensor,
    gains: torch.Tensor,
    stop: torch.Tensor,
    wanted: torch.Tensor,
    rows: Sequence[int],
    sizes: Sequence[int],
    may_overwrite: bool,
) -> torch.Tensor:
    """The items that the recursion takes and the padding, [B, n] bool; `kernel` changes only if it `may_overwrite`.

    `gains` is [B, n], d² at first and −inf for padding; `stop` and `wanted` are [B], the least d² to
    take and the most items; `rows` says how many rows each step treats. Nothing waits for a CUDA device.
    """
    taken = torch.zeros_like(gains, dtype=torch.bool)
    items = torch.arange(gains.shape[1], device=gains.device).expand_as(gains)
    fused = can_fuse(kernel)
    # One panel size, so that one Triton kernel serves all counts; a CPU would feel the memory it leaves unused.
    steps = PANEL if fused else min(PANEL, len(rows))
    is_own = may_overwrite  # whether `left` may be changed
    left, panel = kernel, kernel.new_zeros(gains.shape[0], steps, gains.shape[1])
    for first in range(0, len(rows), PANEL):
        active = rows[first]
        left, gains, items, panel = left[:active], gains[:active], items[:active], panel[:active]
        if first:
            # Looking at the gains costs a CPU nothing; a CUDA device would have to be waited for.
            if not kernel.is_cuda and not (gains.amax(1) >= stop[:active]).any():
                break
            free = max(sizes[:active]) - first
            if free <= _CUT * gains.shape[1]:
                left, gains, items, panel = _cut(left, gains, items, panel, free)
                is_own = True
            past = panel.transpose(1, 2)
            left = left.baddbmm_(past, panel, alpha=-1) if is_own else torch.baddbmm(left, past, panel, alpha=-1)
            is_own = True
        if fused:
            take_panel_fused(left, gains, stop, wanted, first, panel)
        elif active == 1 and not kernel.is_cuda:
            _take_panel_alone(left[0], gains[0], float(stop[0]), len(rows) - first, panel)
        else:
            _take_panel(left, gains, stop, wanted, first, rows[first : first + PANEL], panel)
        taken[:active].scatter_(1, items, gains.isneginf())
    return taken


def _cut(
    left: torch.Tensor, gains: torch.Tensor, items: torch.Tensor, panel: torch.Tensor, free: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """All four for the first `free` items that are not taken, in order; rows that go on have no more."""
    place = gains.isneginf().to(torch.uint8).argsort(dim=1, stable=True)[:, :free]
    batch, n = gains.shape
    lines = left.view(batch * n, n).index_select(0, (_offsets(batch, n, left.device) + place).flatten())
    left = lines.view(batch, free, n).gather(2, place.unsqueeze(1).expand(-1, free, -1))
    panel = panel.gather(2, place.unsqueeze(1).expand(-1, panel.shape[1], -1))
    return left, gains.gather(1, place), items.gather(1, place), panel


def _take_panel(
    left: torch.Tensor,
    gains: torch.Tensor,
    stop: torch.Tensor,
    wanted: torch.Tensor,
    first: int,
    rows: Sequence[int],
    panel: torch.Tensor,
) -> None:
    """Steps `first` … of the recursion, one for each of `rows`, on what is `left` of the kernel [B, n, n].

    Sets `gains` [B, n] to −inf for items that are taken and writes the factor of each step to `panel`
    [B, PANEL, n]: zero where a row takes nothing.
    """
    batch, n, _ = left.shape
    lines = left.view(batch * n, n)
    offset = _offsets(batch, n, left.device)
    # The least gain to take, out of reach where a row has all that it wants, [steps, b, 1].
    step = torch.arange(first, first + len(rows), device=left.device).unsqueeze(1)
    least = torch.where(wanted[:batch] > step, stop[:batch], torch.inf).unsqueeze(2)
    for step, active in enumerate(rows):
        now = gains[:active]
        gain, item = now.max(1, keepdim=True)
        alive = gain >= least[step, :active]
        line = lines.index_select(0, (item + offset[:active]).squeeze(1))
        if step:
            past = panel[:active, :step]
            weights = past.gather(2, item.unsqueeze(2).expand(-1, step, 1))
            line = torch.baddbmm(line.unsqueeze(1), weights.transpose(1, 2), past, alpha=-1).squeeze(1)
        factor = panel[:active, step]
        torch.mul(line, torch.where(alive, gain, torch.inf).rsqrt_(), out=factor)
        now.addcmul_(factor, factor, value=-1)
        # Taken items drop out at -inf; a row that is not alive gets back what it had.
        now.scatter_(1, item, torch.where(alive, -torch.inf, gain))


def _take_panel_alone(left: torch.Tensor, gains: torch.Tensor, stop: float, wanted: int, panel: torch.Tensor) -> None:
    """`_take_panel` for a single kernel on the CPU, at the same numbers, bit for bit.

    `left` is [n, n], `gains` [n], `panel` [1, PANEL, n]; `wanted` steps are still to be taken. Most of a step's time
    are the calls themselves: what is a number here needs none of those that choose among rows.
    """
    factors = panel[0]
    for step in range(len(factors)):
        gain, item = gains.max(0)
        place = int(item)
        if step >= wanted or not float(gain) >= stop:
            factors[step:] = 0.0
            return
        line = left[place]
        if step:
            weights = factors[:step, place].clone().view(1, 1, step)
            line = torch.baddbmm(line.view(1, 1, -1), weights, panel[:, :step], alpha=-1).view(-1)
        factor = factors[step]
        torch.mul(line, gain.rsqrt_(), out=factor)
        gains.addcmul_(factor, factor, value=-1)
        gains[place] = -torch.inf


def _offsets(batch: int, n: int, device: torch.device) -> torch.Tensor:
    """Where the items of each row begin when the lines of all kernels are numbered through, [B, 1]."""
    return torch.arange(0, batch * n, n, device=device).unsqueeze(1)
