"""What a measurement was taken on, and with which code."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.provenance import code_version


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """Device name, CPU threads, torch release, time and commit, to stand beside numbers."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {_processor()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _processor() -> str:
    """The processor's name; platform knows only its architecture on Linux."""
    names = Path("/proc/cpuinfo")
    if names.is_file():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, marked where files were changed since; without a checkout the release and its hash."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return code_version()
