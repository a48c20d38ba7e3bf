"""What the operating system says about main memory: how much is free, and how much this process has used."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_LIMITLESS = 2**60  # what version 1 writes where there is no limit is about 2^63


def free_host_bytes() -> int:
    """Bytes that this process may still use: the machine's free memory or its control group's, whichever is less.

    Without /proc (not Linux) half of the machine's memory.
    """
    machine = _fields(_PROC / "meminfo").get("MemAvailable")
    if machine is None:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min(machine, *_free_in_groups()))


def resident_bytes() -> int | None:
    """The process's memory now (VmRSS); None where the system does not say."""
    return _fields(_PROC / "self" / "status").get("VmRSS")


def peak_resident_bytes() -> int | None:
    """The most that the process has used (VmHWM) since it began, or since `reset_peak_resident`; None as above."""
    return _fields(_PROC / "self" / "status").get("VmHWM")


def reset_peak_resident() -> bool:
    """Let `peak_resident_bytes` begin anew; False where the process may not do that."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _free_in_groups() -> list[int]:
    """Bytes left under each memory limit that holds for this process (control groups version 1 and 2)."""
    free = [_LIMITLESS]
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit, usage = (
            (_CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else (_CGROUPS, "memory.max", "memory.current")
        )
        group = root / path.lstrip("/")
        # a container may not see its own group under its name on the host: its root then is the group
        for folder in (group, *group.parents):
            bound, used = _number(folder / limit), _number(folder / usage)
            if bound is not None and used is not None and bound < _LIMITLESS:
                free.append(bound - used + _reclaimable(folder / "memory.stat"))
            if folder == root:
                break
    return free


def _reclaimable(stat: Path) -> int:
    """Page cache that counts as used although the system gives it up on demand."""
    for line in _lines(stat):
        name, _, value = line.partition(" ")
        if name in ("total_inactive_file", "inactive_file"):
            return int(value)
    return 0


def _fields(path: Path) -> dict[str, int]:
    """Lines like "MemAvailable:  123 kB" as bytes by name."""
    fields: dict[str, int] = {}
    for line in _lines(path):
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            fields[name] = int(value.removesuffix(" kB")) * 1024
    return fields


def _number(path: Path) -> int | None:
    """A file's number; None for "max" and for a file that cannot be read."""
    [*_, last] = ["", *_lines(path)]
    return int(last) if last.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
