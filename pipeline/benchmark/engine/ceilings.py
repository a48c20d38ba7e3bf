"""What the device can do at best: a large matrix product, and a copy too large for any cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_SIDES = {"cpu": 2048, "cuda": 8192}  # of square matrices
_BYTES = {"cpu": 2**28, "cuda": 2**31}  # copied
_TRIES = 5


@dataclass(frozen=True)
class Ceilings:
    """The best of a few tries: FLOPs counted as 2n³, copied bytes once read and once written."""

    matmul_tflops: float
    copy_gbs: float


def measure_ceilings(device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Ceilings:
    """Measure with the current number of threads; `scale` shrinks both sizes, for a quick look."""
    side = max(1, int(_SIDES[device.type] * scale))
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.zeros(max(1, int(_BYTES[device.type] * scale)), dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    matmul_s = _best_s(lambda: torch.matmul(a, b, out=product), device)
    copy_s = _best_s(lambda: target.copy_(source), device)
    return Ceilings(2 * side**3 / matmul_s / 1e12, 2 * source.nbytes / copy_s / 1e9)


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest try, after one to warm up."""
    times: list[float] = []
    for _ in range(_TRIES + 1):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
