"""Time on a device that works asynchronously, and its division among those who caused it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch


class Stopwatch:
    """Milliseconds between laps; each lap waits until the device has done what it was given."""

    def __init__(self, device: torch.device) -> None:
        """Start the first lap."""
        self._device = device
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        """Milliseconds since the last lap."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        elapsed, self._last = (now - self._last) * 1000.0, now
        return elapsed


def shares(total: float, weights: Sequence[int]) -> list[float]:
    """Divide `total` in proportion to `weights`, equally if all are zero."""
    whole = sum(weights)
    return [total * weight / whole if whole else total / len(weights) for weight in weights]
