"""Answer the questions that a manifest asks about its videos: `python -m jobs.qa --config FILE [key.path=value …]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.console import run_command


def main(
    config: Annotated[Path, typer.Option(help="the job file, YAML")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings as key.path=value, over the job file's")
    ] = None,
) -> None:
    """Answer the questions that a manifest asks about its videos.

    Exit status: 0 done; 1 more rows failed than failures.max_failed_share allows; 2 something of
    the job must be changed; 3 cluster or storage failed.
    """
    raise typer.Exit(run_command("qa", config, overrides or []))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
