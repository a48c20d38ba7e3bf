"""The `pipeline` command of `python -m jobs.benchmark`."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from jobs.tables import print_wide
from pipeline.benchmark.machine import describe_machine

_WIDTH = 120  # of the table where there is no terminal


def pipeline(
    setting: Annotated[
        list[str] | None,
        typer.Option(help="stub, demo, curve (ten rows a video) or curve-single (one); may be repeated (stub, demo)"),
    ] = None,
    rows: Annotated[
        list[int] | None,
        typer.Option(min=20, help="rows of a run; may be repeated (stub 320, demo 96, curves 1000, 10000, 100000)"),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="runs of each, of which medians are reported; a curve's: 1")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="write the rows to this file")] = None,
    cache: Annotated[Path, typer.Option(help="folder of the demo's clips, made by the first call")] = Path(
        "out/benchmark-pipeline"
    ),
) -> None:
    """Whole runs beside their slowest stage alone, and what a row costs the driver.

    stub: stages that sleep, on a cluster of four nodes on this machine. demo: the built-in model over
    generated clips, on two cores. Both together take about eight minutes of an idle machine, a curve
    longer: stages that do nothing, on two cores.
    """
    # late: the other commands need no cluster
    from pipeline.benchmark.pipeline.driver import DriverError
    from pipeline.benchmark.pipeline.measure import ROWS, measure
    from pipeline.benchmark.pipeline.report import as_table, check_rows

    chosen = list(dict.fromkeys(setting or ["stub", "demo"]))
    for wrong in [name for name in chosen if name not in ROWS]:
        print(f"error: --setting {wrong}: there are only {', '.join(ROWS)}", file=sys.stderr)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the cluster must not be left behind
    machine = describe_machine(torch.device("cpu"))
    begun = time.monotonic()
    measured = []
    try:
        with Console(stderr=True).status("measuring") as status:
            for name in chosen:
                measured += measure(name, sorted(set(rows or ROWS[name])), repeats, cache, status.update)
    except DriverError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print_wide(as_table(measured), _WIDTH)
    print("Rates are over the middle 80 % of a run, by the times at which its rows were finished.")
    if "demo" in chosen:
        print(
            "A stage alone: one process without a cluster right after the run, over the same clips, with its threads."
        )
    print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"took {time.monotonic() - begun:,.0f} s")
    print("aims:")
    for check in check_rows(measured):
        print(f"  {check}")
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps([asdict(row) | machine for row in measured], indent=2) + "\n")
        print(f"rows  {json_file}")
