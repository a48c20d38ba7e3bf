"""Measure speed on this machine: `python -m jobs.benchmark pruning`, `engine`, `decode` or `pipeline`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from jobs.benchmark_decode import decode
from jobs.benchmark_engine import engine
from jobs.benchmark_pipeline import pipeline
from jobs.tables import print_wide
from pipeline.benchmark.machine import describe_machine
from pipeline.benchmark.picks import MARGIN
from pipeline.benchmark.pruning import MAX_BLOCK, NUM_LAYERS, RETENTIONS, SEGMENTS, Row, benchmark_pruning

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(engine)
app.command()(decode)
app.command()(pipeline)


@app.callback()
def benchmark() -> None:
    """Measure speed on this machine, side by side."""


@app.command()
def pruning(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows to this file")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed rounds; medians are reported")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (torch's own number)")] = None,
    frames: Annotated[int, typer.Option(min=1, help="frames of the video")] = 64,
    positions: Annotated[int, typer.Option(min=1, help="tokens of a frame")] = 210,
    dim: Annotated[int, typer.Option(min=1, help="numbers in a token's hidden state")] = 3584,
    projection: Annotated[int, typer.Option(min=1, help="dimensions of the projected selection")] = 256,
    uneven: Annotated[bool, typer.Option("--uneven", help="segments of random lengths, not equal ones")] = False,
    unsplit: Annotated[bool, typer.Option("--unsplit", help="also time one segment as one block (slow)")] = False,
) -> None:
    """Selection at HieraVid's first stage after the input: ours beside the straightforward formulation.

    Straightforward: one kernel over all live tokens, then the sequential recursion in one block after the other.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe_machine(device)
    rows: list[Row] = []
    with Console(stderr=True).status("measuring") as status:
        for row in benchmark_pruning(device, repeats, frames, positions, dim, projection, uneven, unsplit):
            rows.append(row)
            status.update(f"measuring, {len(rows)} of {len(RETENTIONS) * len(SEGMENTS)} done")
    video = f"{frames} × {positions} tokens, d = {dim}"
    _show(rows, f"Selecting tokens at layer {NUM_LAYERS // 4} of {NUM_LAYERS}, {video}, median of {repeats}")
    print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps([asdict(row) | machine for row in rows], indent=2) + "\n")
        print(f"rows  {json_file}")


def _show(rows: Sequence[Row], title: str) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("retention", "live", "kept", "segments", "ours", "straightforward", "speedup", "same picks"):
        table.add_column(name, justify="right")
    for name in ("projected", "overlap"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.retention:.0%}",
            f"{row.live_tokens:,}",
            f"{row.kept_tokens:,}",
            f"{row.segments}",
            f"{row.ours_ms:,.1f} ms",
            f"{row.straightforward_ms:,.1f} ms",
            f"{row.speedup:.1f}×",
            "yes" if row.margin == 0 else f"{'yes' if row.same_picks else 'no'}, {row.margin:.0e}",
            f"{row.projected_ms:,.1f} ms",
            f"{row.projected_overlap:.1%}",
        )
    print_wide(table, 120)
    errors = ", ".join(f"{error:.3f}" for error in sorted({round(row.projected_cosine_rms, 3) for row in rows}))
    print(
        f"Projected: cosines after a random projection to {rows[0].projection} dimensions, their error {errors} (rms)."
    )
    print(
        "Same picks: with a number, picks part where two gains differ by that much of the kernel's largest diagonal "
        f"(below {MARGIN:.0e} counts as the same)."
    )
    print(
        f"Both sides select inside the same blocks: a segment of more than {MAX_BLOCK} tokens is split evenly in time."
    )
    for row in rows:
        if row.unsplit_ms is not None and row.unsplit_straightforward_ms is not None:
            print(
                f"{row.retention:.0%}, one segment as one block, one run each: ours {row.unsplit_ms:,.0f} ms, "
                f"straightforward {row.unsplit_straightforward_ms:,.0f} ms, "
                f"same picks: {'yes' if row.unsplit_same_picks else 'no'}"
            )


if __name__ == "__main__":
    app()
