"""What this process and its children have used so far, of processor, memory and input (Linux)."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Seconds of processor and of the clock, bytes that were read from files, the largest resident memory in MiB."""

    cpu_s: float
    wall_s: float
    bytes_read: int
    peak_mb: float


def usage_now() -> Usage:
    """Up to this moment, of this process and its children, living and ended.

    Memory is this process' and that of the living children together, or of the largest that has ended.
    """
    children = _children()
    pids = [os.getpid(), *children]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Usage(
        cpu_s=ended.ru_utime + ended.ru_stime + sum(_cpu_s(pid) for pid in pids),
        wall_s=time.perf_counter(),
        bytes_read=sum(_number(pid, "io", "rchar") for pid in pids),
        # ru_maxrss where there is nothing better: a process inherits that of the one that started it.
        peak_mb=(_peak_kb(os.getpid()) + max(sum(map(_peak_kb, children)), ended.ru_maxrss)) / 1024,
    )


def used_since(before: Usage) -> Usage:
    """The difference to an earlier moment; the memory is the largest up to now."""
    now = usage_now()
    return Usage(now.cpu_s - before.cpu_s, now.wall_s - before.wall_s, now.bytes_read - before.bytes_read, now.peak_mb)


def _children() -> list[int]:
    tasks = Path("/proc/self/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def _cpu_s(pid: int) -> float:
    # The number of another process' clock, as clock_getcpuclockid(3) makes it.
    return time.clock_gettime((~pid << 3) | 2)


def _peak_kb(pid: int) -> int:
    return _number(pid, "status", "VmHWM")


def _number(pid: int, file: str, name: str) -> int:
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0
