"""Fold tokens that repeat their predecessor into it (HieraVid, Level 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


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
    values = F.embedding_bag(members, hidden.float(), torch.searchsorted(run, rows), mode="mean")
    return Merged(rows, values.to(hidden.dtype), into)
