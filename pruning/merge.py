"""Fold tokens that repeat their predecessor into it (HieraVid, Level 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def merge_repeats(
    hidden: torch.Tensor, similarity: torch.Tensor, starts: Sequence[int], keep: int, across_segments: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Merge along time until `keep` tokens are left, or nothing more may merge.

    `hidden` is [N, d] with N = T·P row-major in time, `similarity` [T−1, P] each token's cosine with
    its predecessor at the same position, `starts` the first frames of the segments. The tokens of
    highest similarity (ties by index) fold into the head of their run, which becomes the plain mean
    of the run. Unless `across_segments`, no token folds into an earlier segment.

    Returns the rows that stay, [n] int64 ascending with n ≥ `keep`, and their values, [n, d] of hidden's
    dtype (means taken in float32), or None where nothing merged.
    """
    positions = similarity.shape[1]
    frames = similarity.shape[0] + 1
    free = frames - 1 if across_segments else frames - len(starts)
    folds = min(hidden.shape[0] - keep, free * positions)
    if folds <= 0:
        return torch.arange(hidden.shape[0], device=hidden.device), None
    if not across_segments and len(starts) > 1:
        cuts = torch.tensor(starts[1:], device=similarity.device) - 1
        similarity = similarity.index_fill(0, cuts, -torch.inf)
    most_alike = similarity.flatten().argsort(descending=True, stable=True)[:folds] + positions
    folded = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    folded[most_alike] = True
    heads = (~folded).nonzero().squeeze(1)
    return heads, _run_means(hidden, folded.view(frames, positions), heads).to(hidden.dtype)


def _run_means(hidden: torch.Tensor, folded: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """Mean over each head and the folded tokens that follow it at its position, [n, d] float32.

    `folded` is [T, P] bool, False in frame 0; `heads` are the n rows that are not folded.
    """
    frames, positions = folded.shape
    frame = torch.arange(frames, device=folded.device).unsqueeze(1)
    head_frame = frame.masked_fill(folded, 0).cummax(0).values
    head = (head_frame * positions + torch.arange(positions, device=folded.device)).flatten()
    # Sorted by head, runs lie one after the other in the order of `heads`: one bag each, summed in
    # time order, which no atomic addition would keep.
    head, members = head.sort(stable=True)
    return F.embedding_bag(members, hidden.float(), torch.searchsorted(head, heads), mode="mean")
