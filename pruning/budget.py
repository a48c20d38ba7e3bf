"""How many tokens each segment of a video may keep (HieraVid, Level 2), for all videos at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

SCORE_WEIGHT = 0.1
LEAST_SHARE, MOST_SHARE = 0.05, 0.95


def split_budgets(
    lengths: Sequence[Sequence[int]],
    totals: Sequence[int],
    values: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]],
    exact: bool,
) -> list[list[int]]:
    """Split each video's kept tokens over its segments; the counts of video i add up to `totals[i]` exactly.

    For a video, `lengths` are the live tokens n_i, `values` v_i and `scores` z_i of its S segments, and
    0 ≤ total ≤ Σ n_i. Segment i keeps the share q_i = clip(κ' + 0.1·z_i, 0.05, 0.95), the bounds
    widened to contain the stage's κ = total / Σ n_i. `exact` solves for κ' so that Σ q_i·n_i = total;
    otherwise κ' = κ and the shares are scaled to it. Fractions go by largest remainder. A segment
    with live tokens keeps at least one, unless there are fewer tokens than such segments: then those
    of lowest value keep none (ties: the later one). All in float64 on the host.
    Raises ValueError for a total outside its range.
    """
    sizes = _padded(lengths)
    total = torch.tensor(list(totals), dtype=torch.float64).unsqueeze(1)
    if (total < 0).any() or (total > sizes.sum(1, keepdim=True)).any():
        raise ValueError(f"{list(totals)} tokens do not fit segments of {[sum(n) for n in lengths]} tokens in all")
    live = sizes > 0
    worth = _padded(values).masked_fill(~live, -torch.inf)
    fits = total > live.sum(1, keepdim=True)
    best = live & (_ranks(-worth) < total)
    # A video with too few tokens for its segments takes part with one token for each, and is left out at the end.
    enough = torch.where(fits, total, live.sum(1, keepdim=True).to(total))
    wanted = _wanted(sizes, enough, _padded(scores), exact)
    counts = torch.where(fits, apportion(wanted, enough, sizes), best.to(total)).to(torch.int64).tolist()
    return [count[: len(video)] for count, video in zip(counts, lengths, strict=True)]


def apportion(wanted: torch.Tensor, total: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    """Whole numbers near `wanted` [V, S] that add up to `total` [V, 1] (largest remainder); ties go to the first.

    Each is from 1 to its `most` [V, S], 0 where that is 0; such numbers must exist. All float64.
    """
    # 1e-9 keeps the last bits of the shares from deciding what is whole and what is a tie.
    counts = (wanted + 1e-9).floor().clamp_min(1).minimum(most)
    while (spare := total - counts.sum(1, keepdim=True)).any():
        missing = torch.round(wanted - counts, decimals=9)
        up = (_ranks((-missing).masked_fill(counts >= most, torch.inf)) < spare) & (counts < most)
        # Too many: the smallest remainders give back, of equal ones the last.
        down = _ranks(missing.masked_fill(counts <= 1, torch.inf).flip(1)).flip(1) < -spare
        counts += up.to(counts) - (down & (counts > 1)).to(counts)
    return counts


def _wanted(sizes: torch.Tensor, total: torch.Tensor, scores: torch.Tensor, exact: bool) -> torch.Tensor:
    """q_i·n_i of each segment [V, S], adding up to `total` [V, 1]."""
    whole = sizes.sum(1, keepdim=True).clamp_min(1)
    share = total / whole
    low, high = share.clamp_max(LEAST_SHARE), share.clamp_min(MOST_SHARE)
    bonus = SCORE_WEIGHT * scores
    if not exact:
        wanted = sizes * torch.minimum(torch.maximum(share + bonus, low), high)
        return wanted * (total / wanted.sum(1, keepdim=True).clamp_min(1e-300))
    # Σ q_i·n_i is a broken line in κ': from where all shares are `low` its slope grows by n_i where segment i
    # leaves that bound, and falls by n_i where it meets the other. So κ' is found among its corners.
    corners, order = torch.cat([low - bonus, high - bonus], 1).sort(1)
    slope = torch.cat([sizes, -sizes], 1).gather(1, order).cumsum(1)
    rise = (slope[:, :-1] * corners.diff(dim=1)).cumsum(1)
    reached = low * whole + torch.cat([torch.zeros_like(total), rise], 1)
    corner = (torch.searchsorted(reached, total, right=True) - 1).clamp_min(0)
    beyond = (total - reached.gather(1, corner)) / slope.gather(1, corner).clamp_min(1)
    base = corners.gather(1, corner) + torch.where(slope.gather(1, corner) > 0, beyond, 0)
    return sizes * torch.minimum(torch.maximum(base + bonus, low), high)


def _ranks(keys: torch.Tensor) -> torch.Tensor:
    """Place of each entry of `keys` [V, S] in ascending order of its row, ties by index."""
    order = keys.argsort(dim=1, stable=True)
    return torch.empty_like(order).scatter_(1, order, torch.arange(keys.shape[1]).expand_as(order))


def _padded(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """[V, S] float64, filled up with 0."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.float64)
