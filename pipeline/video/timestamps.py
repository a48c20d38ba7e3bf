"""Which frames of a video are looked at."""

from __future__ import annotations

import numpy as np


def uniform_indices(
    frame_times_s: np.ndarray, count: int, start_s: float | None = None, end_s: float | None = None
) -> np.ndarray:
    """Indices of `count` frames spread evenly over the range: the papers' linspace(0, n - 1, count), rounded.

    `frame_times_s` [n, 2] holds when each frame begins and ends, in seconds. The n frames of the
    range are those on screen at any moment of [start_s, end_s); without bounds, all. Fewer frames
    than asked: each of them once. The result is strictly ascending, and empty when nothing is on
    screen in the range. `count` must be at least 1 (ValueError).
    """
    if count < 1:
        raise ValueError(f"cannot choose {count} frames")
    begins, ends = frame_times_s[:, 0], frame_times_s[:, 1]
    inside = np.ones(len(frame_times_s), dtype=bool)
    if start_s is not None:
        inside &= ends > start_s
    if end_s is not None:
        inside &= begins < end_s
    candidates = np.flatnonzero(inside)
    if len(candidates) <= count:
        return candidates
    # A step above 1 keeps the rounded places distinct; a step of exactly 1 is the case above.
    places = np.linspace(0, len(candidates) - 1, count).round().astype(np.int64)
    return candidates[places]
