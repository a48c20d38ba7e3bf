"""Room and limits of this machine: disks, shared memory, open files."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

from pipeline.doctor.check import Finding
from pipeline.model_fetch import cache_folder

_GIB = 2**30
_LEAST_FREE = 1 * _GIB  # below it a job has no room for the videos that it fetches
_LITTLE_FREE = 10 * _GIB
_RAYS_FULL = 0.95  # Ray spills nothing to a disk of which more is in use
_RAYS_SHARE = 0.3  # of the memory, for its object store
_RAYS_MOST = 200 * _GIB
_SHARED = Path("/dev/shm")  # noqa: S108  # looked at, not written to
_FEW_FILES = 8192


def look_at_disks() -> Finding:
    """Free space where videos are fetched to, where Ray spills its objects and where models are kept."""
    places = {"temporary files": tempfile.gettempdir(), "Ray": _ray_folder(), "models": str(cache_folder())}
    told: list[str] = []
    full: list[str] = []
    little: list[str] = []
    for name, place in places.items():
        folder = _existing(Path(place))
        usage = shutil.disk_usage(folder)
        told.append(f"{usage.free / _GIB:,.0f} GiB free for {name} ({place})")
        if usage.free < _LEAST_FREE or not os.access(folder, os.W_OK):
            full.append(name)
        elif usage.free < _LITTLE_FREE or (name == "Ray" and usage.used > _RAYS_FULL * usage.total):
            little.append(name)
    advice = "free some, or set TMPDIR (temporary files), RAY_TMPDIR (Ray) or HIERAVID_CACHE (models) to another disk"
    if full:
        return Finding("fail", f"{'; '.join(told)}: no room to write for {', '.join(full)}", advice)
    return Finding("warn", "; ".join(told), advice) if little else Finding("ok", "; ".join(told))


def look_at_shared_memory() -> Finding:
    """Whether /dev/shm holds the object store that Ray makes of a machine of this size; else it lies on a slow disk."""
    if not _SHARED.is_dir():
        return Finding("skipped", "this system has no /dev/shm")
    wanted = min(_RAYS_SHARE * _memory(), _RAYS_MOST)
    free = shutil.disk_usage(_SHARED).free
    found = f"{free / _GIB:.1f} GiB of /dev/shm free, Ray's object store takes {wanted / _GIB:.1f} GiB"
    if free >= wanted:
        return Finding("ok", found)
    advice = (
        f"start the container with --shm-size={1.1 * wanted / _GIB:.0f}g (Kubernetes: an emptyDir of medium Memory)"
    )
    return Finding("warn", f"{found}: frames would pass through a disk", advice)


def look_at_open_files() -> Finding:
    """How many files a process may open: Ray raises its own limit to what it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(soft, min(hard, 65_536)) if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    if most >= _FEW_FILES:
        return Finding("ok", f"{most:,} open files")
    return Finding("warn", f"at most {most:,} open files", "ulimit -n 65536, in the shell that starts Ray")


def _ray_folder() -> str:
    return os.path.join(os.environ.get("RAY_TMPDIR") or "/tmp", "ray")  # noqa: S108, PTH118  # where Ray writes


def _existing(folder: Path) -> Path:
    """The folder, or what there is of its path."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _memory() -> int:
    """Bytes of memory of the machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return total
