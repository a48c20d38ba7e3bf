"""Check what jobs need and say how to mend it: `python -m jobs.doctor [--config FILE] [key.path=value …]`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.options import Overrides
from pipeline.doctor.check import Finding, examine, exit_status
from pipeline.doctor.checks import job_checks, machine_checks
from pipeline.errors import ClusterError, UserError

if TYPE_CHECKING:
    from pipeline.config import JobConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_COLORS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


@app.command()
def doctor(
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="the job file, YAML: its parts are checked too")] = None,
    address: Annotated[
        str | None, typer.Option(help="a Ray cluster: host:port, auto, or http://host:port (default: RAY_ADDRESS)")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the findings as JSON")] = False,
) -> None:
    """Check this machine, the cluster and, with a job file, what that job reads and writes.

    Each failure comes with what to do. Exit status: 0 nothing failed; 2 something must be changed;
    3 cluster or storage cannot be reached.
    """
    found = diagnose(config, overrides or [], address or os.environ.get("RAY_ADDRESS"))
    status = exit_status(found)
    if as_json:
        checks = [{"name": name, **asdict(finding)} for name, finding in found]
        print(json.dumps({"exit_status": status, "checks": checks}, indent=2))
    else:
        _show(found)
    raise typer.Exit(status)


def diagnose(config: str | None, overrides: Sequence[str], address: str | None) -> list[tuple[str, Finding]]:
    """All findings; a job is looked at where there is a job file or a setting of one."""
    if config is None and not overrides:
        return examine(machine_checks(address))
    job, read = _read(config, overrides)
    checks = machine_checks(address) if job is None else [*machine_checks(address, job.model.device), *job_checks(job)]
    return [("config", read), *examine(checks)]


def _read(config: str | None, overrides: Sequence[str]) -> tuple[JobConfig | None, Finding]:
    try:
        from pipeline.config_load import load_config  # late: where a package is missing, the checks tell

        job = load_config(config, overrides)
    except UserError as error:
        return None, Finding("fail", str(error), "change it in the job file, or as key.path=value")
    except ClusterError as error:
        return None, Finding("fail", str(error), "check AWS_ENDPOINT_URL and the network", is_away=True)
    except ImportError as error:
        return None, Finding("fail", str(error), "python -m pip install -c constraints.txt -e .")
    return job, Finding("ok", f"a {job.task} job named {job.name}")


def _show(found: Sequence[tuple[str, Finding]]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1))
    for _ in range(3):
        table.add_column(overflow="fold")
    for name, finding in found:
        mended = f"\n→ {finding.advice}" if finding.advice else ""
        color = _COLORS[finding.status]
        table.add_row(f"[{color}]{finding.status}[/{color}]", name, escape(finding.found + mended))
    Console().print(table)
    failed = [name for name, finding in found if finding.status == "fail"]
    print(f"to mend: {', '.join(failed)}" if failed else "nothing failed")


if __name__ == "__main__":
    app()
