"""What a run of the benchmark leaves behind: a header, a table, the aims, and a file."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers
from rich.table import Table

from pipeline.benchmark.check import Check
from pipeline.benchmark.engine.ceilings import Ceilings
from pipeline.benchmark.engine.measurement import Row
from pipeline.benchmark.engine.run import Options
from pipeline.benchmark.engine.subject import Subject
from pipeline.benchmark.machine import describe_machine


def describe(subject: Subject, options: Options, ceilings: Ceilings) -> dict[str, Any]:
    """What the numbers were taken on: machine, code, versions, model, video, ceilings."""
    decoder = subject.family.decoder
    return {
        **describe_machine(subject.device),
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "shape": subject.shape.name,
        "weights": subject.weights,
        "dtype": str(decoder.dtype).removeprefix("torch."),
        "decoder": asdict(decoder.shape),
        "frames": options.frames,
        "frame_size": list(subject.shape.frame_size),
        "video_tokens": subject.tokens(options.frames),
        "text_tokens": subject.family.tokenize("").length,
        "preset": options.preset or "the model's own calibration, else author",
        "repeats": options.repeats,
        **asdict(ceilings),
    }


def write_json(path: Path, header: dict[str, Any], rows: Sequence[Row], checks: Sequence[Check]) -> None:
    """Write header, rows and aims as one object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aims = [asdict(check) | {"passed": check.passed} for check in checks]
    content = {"header": header, "rows": [asdict(row) for row in rows], "aims": aims}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def as_table(rows: Sequence[Row], title: str) -> Table:
    """The rows for people."""
    table = Table(title=title, title_justify="left")
    table.add_column("system")
    for name in ("keep", "scenes", "batch", "new", "vision", "prune", "prefill", "decode", "total ms"):
        table.add_column(name, justify="right")
    for name in ("tok/s", "FLOPs", "TFLOP/s", "GB/s", "peak MiB"):
        table.add_column(name, justify="right")
    for row in rows:
        times = (row.vision_ms, row.prune_ms, row.prefill_ms, row.decode_ms, row.total_ms)
        table.add_row(
            row.system,
            f"{row.retention:.0%}",
            _number(row.segments),
            f"{row.batch}",
            f"{row.new_tokens}",
            *(_number(time) for time in times),
            _number(row.decode_tokens_per_s, 1),
            f"{row.flops_ratio:.3f}",
            _number(row.achieved_tflops, 3 if row.achieved_tflops < 10 else 0),
            _number(row.achieved_gbs, 1),
            _number(row.peak_mb),
        )
    return table


def notes(subject: Subject, rows: Sequence[Row], options: Options) -> list[str]:
    """How to read the table, and what did not come out as it was asked for."""
    lines = [
        "Milliseconds are medians, of the whole batch; frames go through the same preprocessing on both sides, which "
        "counts as vision; no end token on either side. Scenes make no difference to transformers.",
        "TFLOP/s: exact FLOPs of the language model's prefill by its time. GB/s: weights and cache that decoding must "
        "read, by its time; the copy ceiling counts bytes read and written.",
    ]
    found = {row.segments for row in rows if row.segments is not None}
    if found - set(options.segments):
        lines.append(f"The engine found {sorted(found)} segments in videos of {list(options.segments)} scenes.")
    return lines


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"
