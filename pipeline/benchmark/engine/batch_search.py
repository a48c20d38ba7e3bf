"""How many videos at once serve transformers best."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipeline.benchmark.engine.measurement import Measurement
from pipeline.engine.host_memory import resident_bytes
from pipeline.engine.memory import free_bytes, is_out_of_memory, release

_LEAST_GAIN = 1.03  # less than that is noise, and not worth twice the memory


def best_batch(measure: Callable[[int], Measurement], device: torch.device) -> int:
    """Double the batch until a video takes no less time, or memory ends; returns the last batch that gained.

    On the CPU, where a process that takes too much is killed, memory ends earlier: where twice what a
    batch took is more than what is free.
    """
    batch = 1
    run, taken = _measure(measure, batch, device)
    while device.type == "cuda" or 2 * taken < free_bytes(device):
        try:
            doubled, taken = _measure(measure, 2 * batch, device)
        except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
            if not is_out_of_memory(error):
                raise
            release(device)
            return batch
        if doubled.total_ms * _LEAST_GAIN > 2 * run.total_ms:
            return batch
        batch, run = 2 * batch, doubled
    return batch


def _measure(measure: Callable[[int], Measurement], batch: int, device: torch.device) -> tuple[Measurement, float]:
    """A run, and the bytes of main memory that it took at its peak (0 where the system does not say)."""
    if device.type == "cuda":
        measure(batch)  # the first run of a size also chooses kernels and asks the driver for memory
    before = resident_bytes()
    run = measure(batch)
    return run, 0.0 if before is None or run.peak_mb is None else run.peak_mb * 2**20 - before
