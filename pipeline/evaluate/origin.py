"""When, where, from which sources and by which command a table was made."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from pipeline.provenance import code_version

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Origin:
    """The provenance of a table."""

    date: str
    device: str
    commit: str
    command: str

    def line(self) -> str:
        """One line of Markdown, to stand below a table."""
        return f"{self.device}, {self.date}, commit {self.commit}: `{self.command}`"

    def facts(self) -> dict[str, str]:
        """For a file's metadata."""
        return {"date": self.date, "device": self.device, "commit": self.commit, "command": self.command}


def find_origin(command: str, device: str) -> Origin:
    """The origin of what `command` makes now on `device`, "cpu" or "cuda"."""
    return Origin(datetime.now(UTC).date().isoformat(), _device(device), _commit(), command)


def _device(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"{len(os.sched_getaffinity(0))} CPU cores, float32"


def _commit() -> str:
    """The checkout's commit, `-dirty` behind it where files differ; without a checkout the sources' own version."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or code_version()
