"""FastVID (arXiv 2503.11187, NeurIPS 2025): dynamic segments, salient tokens, and density-based merging.

Three parts, with c = 8, τ = 0.9, d = 0.4, p = 4, β = 0.6 as published:
- DySeg. A cut falls after frame t where the cosine of the global features of frames t and t + 1 is below τ, and
  at the c − 1 least alike transitions in any case.
- ATS. A frame's quota is r·P tokens; of these, all but ⌊d·quota⌋ are its most attended tokens in the encoder.
- DTM. The rest of the quotas is pooled over a segment and goes to every p-th frame, counted back from its last:
  there the tokens of highest density score become anchors. With ρ_i = exp(−mean of the squared distances to the
  4 nearest tokens of the frame, itself included) and δ_i the distance to the nearest denser token (the largest
  distance for the densest), the score is ρ·δ; distances are over √(hidden size), among tokens not salient. For
  each anchor frame, all tokens of the segment that are not salient go to its most alike anchor (cosine), and an
  anchor a with n of them becomes w·a + (1 − w)·mean, w = max(β, 1 / (n + 1)).

Where it adapts:
- global features and attention come from SigLIP's pooling head in the paper. The checkpoints here leave that head
  out: a frame's feature is the mean of its tokens, and attention is what a place receives in the tower's last
  layer, mean over heads and queries. Both are what the authors do for Qwen2.5-VL, which has no such head either.
- quotas add up to round(r·N): fractions are spread evenly over the frames, and remainders inside a segment go to
  its last anchor frames.
- where the anchor frames of a segment lack room for its anchors (a high retention), every p-th frame becomes every
  (p − 1)-th, and so on. At r = 1 nothing changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from pruning.peers.groups import group_means
from pruning.peers.input_only import OneStage
from pruning.peers.ranking import largest, ranks
from pruning.protocol import Kept, Needs, VideoTokens
from pruning.vectors import cosine, unit

LEAST_SEGMENTS = 8  # c
CUT_THRESHOLD = 0.9  # τ
ANCHOR_SHARE = 0.4  # d
ANCHOR_STRIDE = 4  # p
LEAST_OWN_WEIGHT = 0.6  # β
NEIGHBOURS = 4


class FastVID(OneStage):
    """Keeps salient tokens of every frame and merges the others into anchors of their segment."""

    name = "fastvid"
    needs = Needs(encoder_attention=True)

    @torch.no_grad()
    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Segments, salient tokens and merged anchors; raises ValueError if a video lacks encoder attention."""
        return [_prune(video, self.name) for video in videos]


def segment_starts(frames: torch.Tensor) -> tuple[int, ...]:
    """First frames of the segments, from the frames' global features [T, d] (DySeg)."""
    similarity = cosine(frames[1:], frames[:-1])
    is_cut = similarity < CUT_THRESHOLD
    is_cut[largest(-similarity, min(LEAST_SEGMENTS - 1, len(similarity)))] = True
    return (0, *(is_cut.nonzero().squeeze(1) + 1).tolist())


def density_scores(tokens: torch.Tensor, is_salient: torch.Tensor) -> torch.Tensor:
    """ρ·δ of each token among its frame's tokens that are not salient, [T, P]; −∞ for salient ones.

    `tokens` is [T, P, d] float32, `is_salient` [T, P] bool. Of equally dense tokens the earlier one is denser.
    """
    distance = torch.cdist(tokens, tokens) / math.sqrt(tokens.shape[2])
    distance.diagonal(dim1=1, dim2=2).zero_()
    ignored = is_salient.unsqueeze(1) | is_salient.unsqueeze(2)
    nearest = distance.masked_fill(ignored, torch.inf).topk(min(NEIGHBOURS, tokens.shape[1]), largest=False).values
    found = nearest.isfinite()
    density = (-nearest.square().masked_fill(~found, 0).sum(2) / found.sum(2).clamp(min=1)).exp()
    rank = ranks(density.masked_fill(is_salient, -1))
    is_denser = (rank.unsqueeze(1) < rank.unsqueeze(2)) & ~ignored
    farthest = distance.masked_fill(ignored, 0).flatten(1).amax(1)
    to_denser = torch.where(is_denser, distance, farthest[:, None, None]).amin(2)
    # Overflowing distances give 0 · ∞; such a token must still rank above the salient ones.
    return torch.nan_to_num(density * to_denser).masked_fill(is_salient, -torch.inf)


def anchor_counts(starts: Sequence[int], quotas: Sequence[int], room: Sequence[int]) -> list[dict[int, int]]:
    """For each segment, how many anchors its anchor frames get: the sum of its frames' `quotas`.

    `room[t]` is how many anchors frame t has tokens for; quotas[t] ≤ room[t].
    """
    segments = []
    for start, end in zip(starts, (*starts[1:], len(quotas)), strict=True):
        total = sum(quotas[start:end])
        for stride in range(ANCHOR_STRIDE, 0, -1):
            frames = range(end - 1, start - 1, -stride)
            counts = {t: total // len(frames) + (i < total % len(frames)) for i, t in enumerate(frames)}
            if all(count <= room[t] for t, count in counts.items()):
                break
        else:
            counts = {t: quotas[t] for t in range(start, end)}
        segments.append({t: count for t, count in counts.items() if count})
    return segments


def _prune(video: VideoTokens, method: str) -> Kept:
    if video.encoder_attention is None:
        raise ValueError(f"{method} needs the encoder's attention")
    frames, positions = video.grid.frames, video.grid.positions
    tokens = torch.nan_to_num(video.hidden.float()).reshape(frames, positions, -1)
    starts = segment_starts(tokens.mean(1))
    count = video.plan.counts[0]
    if count == video.grid.tokens:
        return Kept(torch.arange(count, device=tokens.device), segment_starts=starts)
    quotas = [count * (t + 1) // frames - count * t // frames for t in range(frames)]
    # 1e-9: 0.4 is no binary fraction, and ⌊0.4 · 5⌋ is 2.
    contexts = [math.floor(ANCHOR_SHARE * quota + 1e-9) for quota in quotas]
    salient = [quota - context for quota, context in zip(quotas, contexts, strict=True)]
    attention = video.encoder_attention.reshape(frames, positions)
    is_kept = ranks(attention) < torch.tensor(salient, device=tokens.device).unsqueeze(1)
    others = (~is_kept).flatten().nonzero().squeeze(1)
    scores = density_scores(tokens, is_kept)
    segments = anchor_counts(starts, contexts, [positions - n for n in salient])
    is_kept, tokens = is_kept.flatten(), tokens.flatten(0, 1)
    merged, into = video.hidden.clone(), torch.full((len(tokens),), -1, device=tokens.device)
    for (start, end), anchors in zip(_bounds(starts, frames, positions), segments, strict=True):
        if not anchors:
            continue
        members = others[(others >= start) & (others < end)]
        rows = [t * positions + largest(scores[t], count) for t, count in anchors.items()]
        _merge(tokens, members, rows, merged, into)
        is_kept[torch.cat(rows)] = True
    keep = is_kept.nonzero().squeeze(1)
    into[keep] = keep
    return Kept(keep, merged[keep], segment_starts=starts, merged_into=into if video.is_traced else None)


def _bounds(starts: Sequence[int], frames: int, positions: int) -> Iterator[tuple[int, int]]:
    """First row of each segment, and the first behind it."""
    return ((start * positions, end * positions) for start, end in zip(starts, (*starts[1:], frames), strict=True))


def _merge(
    tokens: torch.Tensor,
    members: torch.Tensor,
    anchor_frames: Sequence[torch.Tensor],
    merged: torch.Tensor,
    into: torch.Tensor,
) -> None:
    """Let a segment's `members` join its anchors: write these to `merged`, and to `into` the nearest of each member."""
    units = unit(tokens[members])
    best = torch.full((len(members),), -torch.inf, device=tokens.device)
    for rows in anchor_frames:
        alike, choice = (units @ unit(tokens[rows]).T).max(1)
        sizes = choice.bincount(minlength=len(rows)).unsqueeze(1)
        own = (1 / (sizes + 1)).clamp(min=LEAST_OWN_WEIGHT)
        anchors = own * tokens[rows] + (1 - own) * group_means(tokens[members], choice, len(rows))
        # A copy of another anchor may be left without any member: it stays what it is.
        merged[rows] = torch.where(sizes > 0, anchors, tokens[rows]).to(merged.dtype)
        into[members] = torch.where(alike > best, rows[choice], into[members])
        best = torch.maximum(best, alike)
