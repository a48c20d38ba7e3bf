"""A job's average spent unevenly: videos in which little happens get fewer tokens than eventful ones."""

from __future__ import annotations

import threading

import numpy as np

_GRID = 32  # pixels a side, about, in which frames are compared: finer changes are noise and camera shake
_POWER = 0.5  # of a video's eventfulness over the mean one's
_FURTHEST = 2.0  # no video gets more than so many times the mean, or less than its inverse
_REPAY = 0.1  # of what earlier videos left over or took too much, with the next one


def eventfulness(frames: np.ndarray) -> float | None:
    """How much changes from frame to frame: the mean absolute difference, from 0 (nothing moves) to 1.

    `frames` is uint8 [T, H, W, 3], of which some 1,000 pixels each are looked at; None of a single frame.
    """
    if len(frames) < 2:
        return None
    step = max(1, -(-min(frames.shape[1:3]) // _GRID))
    seen = frames[:, step // 2 :: step, step // 2 :: step].astype(np.int16)
    return float(np.abs(np.diff(seen, axis=0)).mean()) / 255


class Uneven:
    """The retention of each video in turn, around a mean that all of them together keep to.

    It follows from what was seen so far, so the same videos in another order get other retentions. Threads may share
    it.
    """

    def __init__(self, mean: float) -> None:
        """`mean`, in (0, 1], is to be kept unless a call names another."""
        self._mean = mean
        self._lock = threading.Lock()  # of what follows
        self._rows = 0  # about videos of several frames
        self._events = 0.0  # the sum over these
        self._factors = 0.0  # the sum of what they would have got in place of 1
        self._owed = 0.0  # retention times tokens that earlier rows left over

    def __call__(self, mean: float | None, frames: np.ndarray, rows: int = 1) -> float:
        """The retention of so many rows about a video of `frames`, uint8 [T, H, W, 3].

        It lies between half the mean and twice that, and no further below it than it may be above.
        """
        mean = self._mean if mean is None else mean
        if not rows:
            return mean
        events = eventfulness(frames)
        tokens = float(rows * frames.shape[0] * frames.shape[1] * frames.shape[2])  # in proportion
        most = min(1.0, mean * _FURTHEST)
        least = max(mean / _FURTHEST, 2 * mean - most)
        with self._lock:
            wanted = mean * self._factor(events, rows) + _REPAY * self._owed / tokens
            given = min(max(wanted, least), most)
            self._owed += (mean - given) * tokens
        return round(given, 4)

    def _factor(self, events: float | None, rows: int) -> float:
        """In place of 1, about the mean over all rows; 1 where nothing is known."""
        if events is None:
            return 1.0
        self._rows += rows
        self._events += rows * events
        raw = (events * self._rows / self._events) ** _POWER if self._events else 1.0
        factor = min(max(raw, 1 / _FURTHEST), _FURTHEST)
        self._factors += rows * factor
        return factor * self._rows / self._factors
