"""Frames of several videos to video tokens, in micro-batches that cross the borders between videos."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.engine.families import Family

# Patches in one call of the vision tower: enough to fill the device, little enough to bound memory.
_PATCHES_CPU = 4_096
_PATCHES_CUDA = 32_768
_SOURCE_BYTES = 64 * 2**20  # raw frames that are resized at once


def encode_videos(
    family: Family, videos: Sequence[np.ndarray | torch.Tensor], with_attention: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """uint8 videos [T, H, W, 3], sizes may differ, to video tokens [N, hidden] each.

    Beside each stands, if asked for, the attention [N] float32 that its tokens' places received in
    the vision tower's last layer, else None.
    """
    parts: list[list[tuple[torch.Tensor, torch.Tensor | None]]] = [[] for _ in videos]
    waiting: list[tuple[int, torch.Tensor]] = []  # rows of one shape, with the number of their video

    for number, pixels in _preprocess(family, videos):
        if waiting and waiting[0][1].shape[1:] != pixels.shape[1:]:
            _encode(family, waiting, parts, with_attention)
            waiting = []
        waiting.append((number, pixels))
        rows_at_once = _rows_at_once(family, pixels)
        if sum(rows.shape[0] for _, rows in waiting) >= rows_at_once:
            waiting = _encode(family, waiting, parts, with_attention, rows_at_once)
    if waiting:
        _encode(family, waiting, parts, with_attention)
    return [(_join([tokens for tokens, _ in part]), _join([received for _, received in part])) for part in parts]


def _rows_at_once(family: Family, pixels: torch.Tensor) -> int:
    """Rows of `preprocess` like these that the vision tower takes in one call."""
    patches = _PATCHES_CUDA if family.decoder.device.type == "cuda" else _PATCHES_CPU
    return max(1, patches // family.patches(pixels))


def _encode(
    family: Family,
    waiting: list[tuple[int, torch.Tensor]],
    parts: list[list[tuple[torch.Tensor, torch.Tensor | None]]],
    with_attention: bool,
    only_multiples_of: int = 1,
) -> list[tuple[int, torch.Tensor]]:
    """Encode waiting rows of one shape and hand each video its part; returns what is left for a full batch."""
    rows = torch.cat([pixels for _, pixels in waiting])
    owners = [number for number, pixels in waiting for _ in range(pixels.shape[0])]
    whole = len(owners) - len(owners) % only_multiples_of
    for at_once in rows[:whole].split(_rows_at_once(family, rows)):
        tokens, received = family.encode(at_once, with_attention)
        first = 0
        for number, run in itertools.groupby(owners[: at_once.shape[0]]):
            end = first + len(list(run))
            parts[number].append((tokens[first:end], None if received is None else received[first:end]))
            first = end
        del owners[: at_once.shape[0]]
    return [(owners[0], rows[whole:])] if owners else []


def _join(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Parts [rows, positions, …] of one video as [N, …]; None if there are none."""
    tensors = [part.flatten(0, 1) for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


def _preprocess(family: Family, videos: Sequence[np.ndarray | torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (video number, preprocessed rows), moving a bounded number of raw frames to the device at once."""
    for number, video in enumerate(videos):
        # only the last step of a video may be incomplete
        steps = _SOURCE_BYTES // max(1, video[0].nbytes) // family.frames_per_step
        frames_at_once = max(1, steps) * family.frames_per_step
        for start in range(0, video.shape[0], frames_at_once):
            part = _as_tensor(video[start : start + frames_at_once])
            yield number, family.preprocess(part.to(family.decoder.device, non_blocking=True))


def _as_tensor(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory, or over a copy where torch cannot share it."""
    if isinstance(frames, torch.Tensor):
        return frames
    # an object store hands out read-only arrays, views may be strided backwards: torch takes neither
    shareable = frames.flags.writeable and frames.flags.c_contiguous
    return torch.from_numpy(frames if shareable else frames.copy(order="C"))
