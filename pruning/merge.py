"""Fold tokens that repeat their predecessor into it (HieraVid, Level 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F

from pruning.vectors import numbers_at_once


@dataclass(frozen=True)
class Merged:
    """What is left of N tokens: `rows` [n] int64 ascending, and `values` [n, d] of their runs, None if nothing merged.

    `into` is [N] int64: the row that each token lives on in, itself where it did not merge.
    """

    rows: torch.Tensor
    values: torch.Tensor | None
    into: torch.Tensor


def merge_repeats(
    hidden: torch.Tensor, similarity: torch.Tensor, starts: Sequence[int], keep: int, across_segments: bool
) -> Merged:
    """Merge along time until `keep` tokens are left, or nothing more may merge (then `rows` are more than `keep`).

    `hidden` is [N, d] with N = T·P row-major in time, `similarity` [T−1, P] each token's cosine with
    its predecessor at the same position, `starts` the first frames of the segments. The tokens of
    highest similarity (ties by index) fold into the head of their run, which becomes the plain mean
    of the run, taken in float32 and rounded to hidden's dtype. Unless `across_segments`, no token
    folds into an earlier segment.
    """
    positions = similarity.shape[1]
    frames = similarity.shape[0] + 1
    free = frames - 1 if across_segments else frames - len(starts)
    folds = min(hidden.shape[0] - keep, free * positions)
    everything = torch.arange(hidden.shape[0], device=hidden.device)
    if folds <= 0:
        return Merged(everything, None, everything)
    if not across_segments and len(starts) > 1:
        cuts = torch.tensor(starts[1:], device=similarity.device) - 1
        similarity = similarity.index_fill(0, cuts, -torch.inf)
    most_alike_first = similarity.flatten().argsort(descending=True, stable=True) + positions
    folded, rows = most_alike_first[:folds], torch.cat([everything[:positions], most_alike_first[folds:]]).sort().values
    into = everything.index_fill(0, folded, 0).view(frames, positions)
    # Heads name themselves and a folded token the latest head before it, which its position's maximum so far is.
    into = into.cummax(0).values.flatten()
    # Sorted by head, runs lie one after the other: one bag each, summed in time order, which no
    # atomic addition would keep.
    run, members = into.sort(stable=True)
    return Merged(rows, _run_means(hidden, members, torch.searchsorted(run, rows)), into)


def _run_means(hidden: torch.Tensor, members: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Plain means [n, d] of runs of the rows of `hidden` [N, d], taken in float32, in hidden's dtype.

    `members` [N] int64 are rows, run after run, and `starts` [n] where each run begins in them. Other
    dtypes are widened a few runs at a time, not all N rows together.
    """
    total, d = hidden.shape
    at_once = max(1, numbers_at_once(hidden.device) // d)
    if hidden.dtype == torch.float32 or total <= at_once:
        return F.embedding_bag(members, hidden.float(), starts, mode="mean").to(hidden.dtype)
    means = hidden.new_empty(len(starts), d)
    # Each piece is the runs that begin in `at_once` members.
    bounds = torch.searchsorted(starts, torch.arange(0, total, at_once, device=starts.device)).tolist()
    for first, end in pairwise([*bounds, len(starts)]):
        own = starts[first:end]
        if first < end:
            begin, stop = int(own[0]), total if end == len(starts) else int(starts[end])
            rows = hidden[members[begin:stop]].float()
            index = torch.arange(stop - begin, device=rows.device)
            means[first:end] = F.embedding_bag(index, rows, own - begin, mode="mean")
    return means
