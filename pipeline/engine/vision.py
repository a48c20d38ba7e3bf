"""Frames of several videos to video tokens, in micro-batches that cross the borders between videos."""

from __future__ import annotations

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
    is_cuda = family.decoder.device.type == "cuda"
    rows_at_once = max(1, (_PATCHES_CUDA if is_cuda else _PATCHES_CPU) // family.patches_per_frame)
    tokens: list[torch.Tensor] = []
    attention: list[torch.Tensor] = []
    lengths = [0] * len(videos)
    waiting: list[torch.Tensor] = []

    def encode(rows: torch.Tensor) -> None:
        for part in rows.split(rows_at_once):
            part_tokens, part_attention = family.encode(part, with_attention)
            tokens.append(part_tokens)
            if part_attention is not None:
                attention.append(part_attention)

    for number, pixels in _preprocess(family, videos):
        lengths[number] += pixels.shape[0]
        waiting.append(pixels)
        ready = sum(part.shape[0] for part in waiting)
        if ready >= rows_at_once:
            rows = torch.cat(waiting)
            whole = ready - ready % rows_at_once
            encode(rows[:whole])
            waiting = [rows[whole:]] if whole < ready else []
    if waiting:
        encode(torch.cat(waiting))
    by_video = [part.flatten(0, 1) for part in torch.cat(tokens).split(lengths)]
    if not attention:
        return [(part, None) for part in by_video]
    received = [part.flatten() for part in torch.cat(attention).split(lengths)]
    return list(zip(by_video, received, strict=True))


def _preprocess(family: Family, videos: Sequence[np.ndarray | torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (video number, preprocessed rows), moving a bounded number of raw frames to the device at once."""
    for number, video in enumerate(videos):
        frames_at_once = max(1, _SOURCE_BYTES // max(1, video[0].nbytes))
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
