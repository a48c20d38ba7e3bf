"""Frames of several videos to video tokens, in micro-batches that cross the borders between videos."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from pipeline.engine.families import Family
from pipeline.engine.memory import most_patches

_SOURCE_BYTES = 64 * 2**20  # raw frames that are resized at once


def encode_videos(
    family: Family,
    videos: Sequence[np.ndarray | torch.Tensor],
    with_attention: bool = False,
    patches: int | None = None,
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """uint8 videos [T, H, W, 3], sizes may differ, to video tokens [N, hidden] each, in memory of their own.

    Beside each stands, if asked for, the attention [N] float32 that its tokens' places received in
    the vision tower's last layer, else None. `patches` is how many one call of the vision tower may
    take, None for the device's usual number; a single row that has more goes alone.
    """
    if patches is None:
        patches = most_patches(family.decoder.device)
    counts = [family.grid(video.shape[0], _size(video)).tokens for video in videos]
    tower = _Tower(family, counts, with_attention, patches)
    for number, rows in _preprocess(family, videos, patches):
        tower.take(number, rows)
    tower.flush()
    return tower.encoded


class _Tower:
    """The vision tower behind a queue: rows of one shape wait until they fill a call, whosever they are."""

    def __init__(self, family: Family, counts: Sequence[int], with_attention: bool, patches: int) -> None:
        """`counts` are the tokens of each video."""
        decoder = family.decoder
        self._family = family
        self._with_attention = with_attention
        self._patches = patches
        self._waiting: list[tuple[int, torch.Tensor]] = []  # rows of one shape, with the number of their video
        # Allocated whole: parts that are joined at the end would need room twice.
        self.encoded: list[tuple[torch.Tensor, torch.Tensor | None]] = [
            (
                torch.empty(count, decoder.shape.hidden, dtype=decoder.dtype, device=decoder.device),
                torch.empty(count, dtype=torch.float32, device=decoder.device) if with_attention else None,
            )
            for count in counts
        ]
        self._filled = [0] * len(counts)

    def take(self, number: int, rows: torch.Tensor) -> None:
        """Rows of `preprocess` of a video, which are encoded as soon as they fill whole calls."""
        if self._waiting and self._waiting[0][1].shape[1:] != rows.shape[1:]:
            self.flush()
        self._waiting.append((number, rows))
        count = sum(waiting.shape[0] for _, waiting in self._waiting)
        at_once = max(1, self._patches // self._family.patches(rows))
        self._encode(count - count % at_once, at_once)

    def flush(self) -> None:
        """Encode what is left, less than a whole call."""
        count = sum(waiting.shape[0] for _, waiting in self._waiting)
        self._encode(count, max(1, count))

    def _encode(self, count: int, at_once: int) -> None:
        """Encode the first `count` waiting rows, `at_once` a call, and hand each video its part."""
        if not count:
            return
        owners = [number for number, rows in self._waiting for _ in range(rows.shape[0])]
        rows = torch.cat([rows for _, rows in self._waiting])
        for first in range(0, count, at_once):
            tokens, received = self._family.encode(rows[first : first + at_once], self._with_attention)
            start = 0
            for number, run in itertools.groupby(owners[first : first + at_once]):
                end = start + len(list(run))
                self._hand_out(number, tokens[start:end], None if received is None else received[start:end])
                start = end
        # what is left belongs to the video that came last, and must not keep the encoded rows alive
        self._waiting = [(owners[-1], rows[count:].clone())] if count < len(owners) else []

    def _hand_out(self, number: int, tokens: torch.Tensor, received: torch.Tensor | None) -> None:
        """The next tokens [rows, positions, hidden] of a video, and the attention that they received."""
        first = self._filled[number]
        self._filled[number] = end = first + tokens.shape[0] * tokens.shape[1]
        whole, whole_received = self.encoded[number]
        whole[first:end].unflatten(0, tokens.shape[:2]).copy_(tokens)
        if whole_received is not None and received is not None:
            whole_received[first:end] = received.flatten()


def _preprocess(
    family: Family, videos: Sequence[np.ndarray | torch.Tensor], patches: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (video number, preprocessed rows), a bounded number of raw frames and of rows at once.

    Videos of one token grid follow each other, so that their rows can be encoded together.
    """
    grids = [family.grid(1, _size(video)) for video in videos]
    for number in sorted(range(len(videos)), key=lambda n: (grids[n].positions, grids[n].columns or 0)):
        video = videos[number]
        # A token stands for a few patches, so this is a few calls of the tower; small frames may grow in `preprocess`.
        steps = min(_SOURCE_BYTES // (family.frames_per_step * video[0].nbytes), patches // grids[number].positions)
        frames_at_once = max(1, steps) * family.frames_per_step  # only the last step of a video may be incomplete
        for start in range(0, video.shape[0], frames_at_once):
            part = _as_tensor(video[start : start + frames_at_once])
            yield number, family.preprocess(part.to(family.decoder.device, non_blocking=True))


def _size(video: np.ndarray | torch.Tensor) -> tuple[int, int]:
    """Height and width of a video's frames."""
    return int(video.shape[1]), int(video.shape[2])


def _as_tensor(frames: np.ndarray | torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory, or over a copy where torch cannot share it."""
    if isinstance(frames, torch.Tensor):
        return frames
    # an object store hands out read-only arrays, views may be strided backwards: torch takes neither
    shareable = frames.flags.writeable and frames.flags.c_contiguous
    return torch.from_numpy(frames if shareable else frames.copy(order="C"))
