"""The rows that took longest, and those of the largest videos."""

from __future__ import annotations

from typing import Any

from pipeline.errors import scrub
from pipeline.report import forms
from pipeline.report.outcome import LETTERS
from pipeline.report.parts import Cell, Section, Table
from pipeline.report.rows import Rows
from pipeline.summary import STAGES

_SHOWN = 8
_TIMES = (*STAGES, "wait_ms")


def videos(rows: Rows) -> Section:
    """The slowest rows and the largest videos of each run."""
    tables = []
    for run in range(len(rows.runs)):
        letter = "" if len(rows.runs) == 1 else f", {LETTERS[run]}"
        if slowest := _slowest(rows, run):
            names = ("video", "whole row", "most of it", "frames", "tokens", "length")
            tables.append(Table(f"Slowest rows{letter}", names, slowest, "The slowest row of each video."))
        if largest := _largest(rows, run):
            names = ("video", "length", "size", "fetched", "tokens", "whole row")
            tables.append(Table(f"Largest videos{letter}", names, largest, "By length."))
    sentences = () if tables else ("No row tells of its video.",)
    return Section("videos", "Slowest and largest", sentences=sentences, tables=tuple(tables))


def _slowest(rows: Rows, run: int) -> tuple[tuple[Cell, ...], ...]:
    found = rows.ask(
        """
        select * from rows where run = ? and total_ms > 0
        qualify row_number() over (partition by coalesce(video_id, item_id) order by total_ms desc, item_id) = 1
        order by total_ms desc, item_id limit ?
        """,
        run,
        _SHOWN,
    )
    return tuple(
        (
            _video(row),
            Cell(forms.milliseconds(row["total_ms"])),
            Cell(_longest_part(row), "text"),
            Cell(forms.count(row["frames"])),
            Cell(forms.count(row["video_tokens"])),
            Cell(forms.seconds(row["duration_s"])),
        )
        for row in found
    )


def _longest_part(row: dict[str, Any]) -> str:
    """The stage in which a row spent most of its time, failed rows with their code."""
    if row["status"] == "error":
        return f"failed: {forms.printable(row['error_code'], 60)}"
    spent, name = max(((row[name] or 0.0, name) for name in _TIMES), default=(0.0, ""))
    return f"{name.removesuffix('_ms')} {forms.milliseconds(spent)}" if spent else forms.NONE


def _largest(rows: Rows, run: int) -> tuple[tuple[Cell, ...], ...]:
    found = rows.ask(
        """
        select * from rows where run = ? and (duration_s > 0 or bytes_fetched > 0)
        qualify row_number() over (partition by coalesce(video_id, item_id) order by item_id) = 1
        order by duration_s desc nulls last, width * height desc nulls last, bytes_fetched desc nulls last, item_id
        limit ?
        """,
        run,
        _SHOWN,
    )
    return tuple(
        (
            _video(row),
            Cell(forms.seconds(row["duration_s"])),
            Cell(f"{row['width']} × {row['height']}" if row["width"] and row["height"] else forms.NONE),
            Cell(forms.size(row["bytes_fetched"])),
            Cell(forms.count(row["video_tokens"])),
            Cell(forms.milliseconds(row["total_ms"])),
        )
        for row in found
    )


def _video(row: dict[str, Any]) -> Cell:
    return Cell(forms.printable(row["video_id"], 60), "foreign", note=forms.tail(scrub(row["uri"] or "")))
