"""How the operator's commands end: one line on stderr and the exit status that every command shares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

EXIT_STATUS = (
    "Exit status: 0 done; 1 more rows failed than the job allows; 2 you must change something; "
    "3 cluster or storage cannot be reached."
)
INTERRUPTED = 130  # as a shell reports a process that Ctrl-C ended


def complain(message: str) -> None:
    """Print each line of an error on stderr."""
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)


@contextmanager
def exit_status(interrupted: str = "interrupted") -> Iterator[None]:
    """Turn what a command raises into its line on stderr and typer's exit; `interrupted` is told after Ctrl-C."""
    from pipeline.errors import ClusterError, UserError

    try:
        yield
    except (UserError, ClusterError) as error:
        complain(str(error))
        raise typer.Exit(2 if isinstance(error, UserError) else 3) from error
    except KeyboardInterrupt as error:
        complain(interrupted)
        raise typer.Exit(INTERRUPTED) from error
