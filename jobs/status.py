"""How far the runs of an output are: `python -m jobs.status OUTPUT [RUN_ID]`, from its folder alone."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.exits import exit_status

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from pipeline.status import OutputStatus, RunStatus

_INTERVAL_S = 5.0
_MOST_RUNS = 20
_HELP = "\n\n".join(
    (
        "Show how far the runs of an output are: rows done, failed and left, the rate, and where the results are.",
        "Everything is read from the run folders, so that it works on any machine that reaches the output, and after "
        "the cluster has gone. A run that is going on counts its rows every 10 seconds.",
        "As in: status out/captions, status s3://archive/captions --watch, status s3://archive/captions RUN_ID --json.",
        "Exit status: 0 shown, however the runs ended (--json tells exit_status for each); 2 there is no such run; "
        "3 the storage cannot be reached.",
    )
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(help=_HELP)
def status(
    output: Annotated[str, typer.Argument(help="the output of a job, local or s3://, or a run folder in it")],
    run_id: Annotated[str | None, typer.Argument(help="one run; default: all, the latest in detail")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="show it anew every few seconds while a run goes on")] = False,
) -> None:
    """Show the runs of an output."""
    with exit_status():
        from pipeline.query_files import Place, find_place
        from pipeline.status import read_status

        place = find_place(output)
        if run_id is not None:
            place = Place(place.output, run_id)
        told = read_status(place)
        if is_json:
            _print_json(told)
        else:
            _show(told)
        while watch and told.holder:
            time.sleep(_INTERVAL_S)
            before, told = told, read_status(place)
            if told != before:
                _print_json(told) if is_json else _show(told)


def _print_json(told: OutputStatus) -> None:
    from pipeline.query_output import to_json

    runs = [asdict(run) | {"left": run.left} for run in told.runs]
    print(to_json({"output": told.output, "holder": told.holder, "runs": runs}), flush=True)


def _show(told: OutputStatus) -> None:
    from rich.console import Console

    from jobs.tables import print_wide

    console = Console()
    if console.is_terminal and told.holder:
        console.clear()
    print_wide(_picture(told), 160)
    if told.runs:
        # Not through rich, which would break paths and commands at the width of the terminal.
        print(f"results  {told.runs[-1].results}")
        print(f"ask      hieravid query {_place(told)} failures")


def _place(told: OutputStatus) -> str:
    import shlex

    return shlex.quote(told.output if len(told.runs) > 1 else f"{told.output}/runs/{told.runs[0].run_id}")


def _picture(told: OutputStatus) -> Group:
    """A table of the runs where there are several, then the latest in detail."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    if told.holder:
        parts.append(Text(f"being written by {told.holder}"))
    if len(told.runs) > 1:
        parts.append(_table(told.runs[-_MOST_RUNS:]))
        if len(told.runs) > _MOST_RUNS:
            parts.append(Text(f"the latest {_MOST_RUNS} of {len(told.runs)} runs; --json tells of all"))
    if told.runs:
        parts.append(_details(told.runs[-1]))
    return Group(*parts)


def _table(runs: tuple[RunStatus, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("run", "job", "state"):
        table.add_column(name)
    for name in ("rows", "of", "failed", "rows/min"):
        table.add_column(name, justify="right")
    for run in runs:
        summary = run.summary or {}
        job = f"{summary['task']} · {summary['name']}" if {"task", "name"} <= summary.keys() else ""
        table.add_row(
            *(run.run_id, job, run.state, f"{run.rows:,}"),
            *(_number(run.manifest_rows), f"{run.errors:,}", _number(run.rows_per_min)),
        )
    return table


def _details(run: RunStatus) -> Table:
    from jobs.tables import named_values

    codes = ", ".join(f"{code} {count}" for code, count in run.error_codes.items())
    ended = "" if run.exit_status is None else f", exit status {run.exit_status}"
    lines = {
        "state": run.state + ended,
        "rows": f"{run.rows:,} of {_number(run.manifest_rows) or 'an unknown number'}, {_number(run.left) or '?'} left",
        "failed": f"{run.errors:,}" + (f" ({codes})" if codes else ""),
        "rate": f"{run.rows_per_min:,.1f} rows/min" if run.rows_per_min else "unknown",
    }
    if run.remaining_s is not None:
        lines["remaining"] = f"about {run.remaining_s / 60:,.0f} min"
    if run.state in ("broken off", "interrupted", "failed") and run.left:
        lines["next"] = "start the job again: the same command does the rest"
    summary = run.summary or {}
    if isinstance(kept := summary.get("retention_mean"), float):
        lines["mean retention"] = f"{kept:.3f}"
    for name, key in (("started", "started_at"), ("last word", "finished_at")):
        if key in summary:
            lines[name] = f"{summary[key][:19].replace('T', ' ')} UTC"
    return named_values(run.run_id, lines.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


if __name__ == "__main__":
    app()
