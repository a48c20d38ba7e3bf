"""Where a video changes, and what each part adds (HieraVid, Level 1)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pruning.protocol import VideoGrid
from pruning.vectors import cosine, numbers_at_once, unit


@dataclass(frozen=True)
class Segmentation:
    """A video cut into segments.

    `starts` are the first frames of the segments, ascending from 0. `similarity` is [T−1, P]
    float32: cosine of each token with the same position one frame earlier. `values` are the
    segments' marginal values v and `scores` their z-scores, S long each.
    """

    starts: tuple[int, ...]
    similarity: torch.Tensor
    values: tuple[float, ...]
    scores: tuple[float, ...]

    def frame_segments(self) -> torch.Tensor:
        """The segment of each frame, [T] int64, on the device of `similarity`."""
        frames = self.similarity.shape[0] + 1
        lengths = [end - start for start, end in zip(self.starts, (*self.starts[1:], frames), strict=True)]
        ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        return ids.to(self.similarity.device)


def segment_video(
    hidden: torch.Tensor, grid: VideoGrid, tau: float, beta: float, segments: int | None = None
) -> Segmentation:
    """Cut a video where a frame repeats too little of the one before.

    `hidden` is [N, d], all tokens of `grid`. Frame t ≥ 1 has the merge ratio m[t], the share of its
    positions whose cosine with the previous frame exceeds `tau`; a segment starts at frame 0 and
    wherever m[t] < `beta`, or, where a number of `segments` S is given, at the S − 1 frames of lowest
    m[t] (ties by index; at most T segments). The grid's constant positions have no say in m or in
    segment means. Raises ValueError if the grid does not fit `hidden`, has no position that is not
    constant, or S < 1.
    """
    if hidden.shape[0] != grid.tokens:
        raise ValueError(f"{grid.frames} × {grid.positions} tokens expected, got {hidden.shape[0]}")
    constants = set(grid.constants)
    picture = [p for p in range(grid.positions) if p not in constants]
    if not picture:
        raise ValueError("a frame needs at least one position that is not constant")
    if segments is not None and segments < 1:
        raise ValueError(f"a video has at least 1 segment, got {segments}")
    tokens = hidden.reshape(grid.frames, grid.positions, -1)
    similarity = _similarity_to_previous(tokens)
    repeats = ((similarity > tau) if not constants else (similarity[:, picture] > tau)).sum(1).tolist()
    if segments is None:
        cuts = [t for t, n in enumerate(repeats, start=1) if n / len(picture) < beta]
    else:
        cuts = sorted(sorted(range(1, grid.frames), key=lambda t: (repeats[t - 1], t))[: segments - 1])
    starts = (0, *cuts)
    values = marginal_values(_segment_means(tokens, picture if constants else None, starts))
    return Segmentation(starts, similarity, tuple(values), tuple(standard_scores(values)))


def marginal_values(means: torch.Tensor) -> list[float]:
    """What each segment adds to those before it and shares with those after (MMG-Vid), S long.

    `means` is [S, d]: v_i = ½·cos(f_i, mean f_<i) + ½·(1 − cos(f_i, mean f_>i)); the first
    segment's first term and the last one's second are 0.
    """
    values = means.new_zeros(means.shape[0], dtype=torch.float32)
    # A cosine does not change with length, so sums stand for means.
    before = means[:-1].cumsum(0)
    after = means[1:].flip(0).cumsum(0).flip(0)
    values[1:] += 0.5 * cosine(means[1:], before)
    values[:-1] += 0.5 * (1 - cosine(means[:-1], after))
    return values.tolist()


def standard_scores(values: Sequence[float]) -> list[float]:
    """(v − mean) / population std; all 0 where the std is below 1e-4."""
    mean, std = statistics.fmean(values), statistics.pstdev(values)
    return [(v - mean) / std if std >= 1e-4 else 0.0 for v in values]


def _similarity_to_previous(tokens: torch.Tensor) -> torch.Tensor:
    """Cosine of each token of `tokens` [T, P, d] with its position's predecessor, [T−1, P]."""
    frames, positions, d = tokens.shape
    similarity = torch.empty(frames - 1, positions, device=tokens.device)
    at_once = max(1, numbers_at_once(tokens.device) // (positions * d))
    for first in range(0, frames - 1, at_once):
        units = unit(tokens[first : first + at_once + 1])
        similarity[first : first + at_once] = (units[1:] * units[:-1]).sum(-1)
    return similarity


def _segment_means(tokens: torch.Tensor, picture: Sequence[int] | None, starts: Sequence[int]) -> torch.Tensor:
    """Mean token of each segment, [S, d] float32, over the `picture` positions (None: all) of `tokens` [T, P, d]."""
    total, positions, d = tokens.shape
    frames = torch.empty(total, d, device=tokens.device)
    at_once = max(1, numbers_at_once(tokens.device) // (positions * d))
    for first in range(0, total, at_once):
        part = tokens[first : first + at_once]
        frames[first : first + at_once] = (part if picture is None else part[:, picture]).float().mean(1)
    index = torch.arange(total, device=frames.device)
    return F.embedding_bag(index, frames, torch.tensor(starts, device=frames.device), mode="mean")
