"""What a run of the benchmark leaves behind: a table, lines that explain it, the aims, and a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from pipeline.benchmark.check import Check
from pipeline.benchmark.decode.run import Bench, ClipRows, Row
from pipeline.benchmark.machine import describe_machine

_PACKAGES = ("av", "decord", "torchcodec")


def describe(bench: Bench) -> dict[str, Any]:
    """What the numbers were taken on: machine, code, releases; every system decodes on one thread."""
    header = describe_machine(torch.device("cpu")) | {"threads": 1}
    releases = {name: _release(name) for name in _PACKAGES}
    return header | releases | {"frames": bench.frames, "repeats": bench.repeats}


def write_json(path: Path, header: dict[str, Any], clips: Sequence[ClipRows], checks: Sequence[Check]) -> None:
    """Write header, rows, aims and what could not be measured as one object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "header": header,
        "rows": [asdict(row) for clip in clips for row in clip.rows],
        "aims": [asdict(check) | {"passed": check.passed} for check in checks],
        "failures": [line for clip in clips for line in clip.failures],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def as_table(clips: Sequence[ClipRows], title: str) -> Table:
    """The rows for people, a section a clip."""
    table = Table(title=title, title_justify="left")
    for name in ("clip", "system", "policy"):
        table.add_column(name, no_wrap=True)
    for name in ("frames", "CPU s", "wall s", "peak MiB", "read MiB", "off by s"):
        table.add_column(name, justify="right", no_wrap=True)
    for clip in clips:
        for row in clip.rows:
            table.add_row(*_cells(row, is_first=row is clip.rows[0]), end_section=row is clip.rows[-1])
    return table


def notes(bench: Bench, clips: Sequence[ClipRows]) -> list[str]:
    """How to read the table, and what is not in it."""
    lines = [
        "The least of the repeats, in fresh processes on one thread that have decoded a small clip before. Wanted are "
        "evenly spread frames; off by: how far the furthest frame lies from its wanted time.",
        "Frames are as large as the file's. Peak: the whole process with its libraries, and its child's where it has "
        "one (what both map counts twice).",
    ]
    if bench.missing:
        lines.append(f"Not installed here: {', '.join(bench.missing)}.")
    failures = [line for clip in clips for line in clip.failures]
    if failures:
        lines.append("Could not be measured:")
        lines += [f"  {line}" for line in failures]
    return lines


def _cells(row: Row, is_first: bool) -> list[str]:
    return [
        row.clip if is_first else "",
        row.system,
        row.policy,
        f"{row.frames}",
        f"{row.cpu_s:,.2f}",
        f"{row.wall_s:,.2f}",
        f"{row.peak_mb:,.0f}",
        f"{row.bytes_read / 2**20:,.1f}",
        "–" if row.max_time_error_s is None else f"{row.max_time_error_s:.3f}",
    ]


def _release(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
