"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[list[str] | None, typer.Argument(help="settings as key.path=value, over the job file's")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="answer failed rows again")]
Code = Annotated[
    list[str] | None, typer.Option(help="with --retry-failed: only rows with this error code; may be repeated")
]
Restart = Annotated[bool, typer.Option("--restart", help="answer every row of the manifest again")]
