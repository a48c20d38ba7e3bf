"""The one command: `hieravid COMMAND …`, the same as `python -m jobs.COMMAND …`.

Only the command that is asked for is imported: several load torch or Ray, which takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from jobs.exits import EXIT_STATUS, complain


@dataclass(frozen=True)
class Told:
    """What the list of commands and the foot of a command's help say before its module is imported."""

    purpose: str
    example: str


COMMANDS = {
    "doctor": Told(
        "Check this machine, its packages, the cluster and the storage; say how to mend what is wrong.",
        "hieravid doctor --config configs/nightly-caption.yaml",
    ),
    "plan": Told(
        "Say what a job would take, in rows, tokens, hours and money, before anything runs.",
        "hieravid plan --config configs/nightly-caption.yaml",
    ),
    "caption": Told(
        "Caption every video of a manifest.",
        "hieravid caption --config configs/demo-caption.yaml budget.retention=0.3",
    ),
    "qa": Told(
        "Answer the questions that a manifest asks about its videos.",
        "hieravid qa --config configs/demo-qa.yaml budget.retention=0.3",
    ),
    "submit": Told(
        "Send a job to a Ray cluster and follow it to its end.",
        "hieravid submit caption --config configs/nightly-caption.yaml --address http://HEAD:8265",
    ),
    "status": Told(
        "Show how far the runs of an output are, from its folder alone.",
        "hieravid status s3://archive/captions --watch",
    ),
    "query": Told(
        "Ask the results: failures, slowest, retention, cost, diff, or SQL of your own.",
        "hieravid query s3://archive/captions failures",
    ),
    "report": Told(
        "Write a run, or two side by side, as one HTML file to look at.",
        "hieravid report s3://archive/captions --out report.html",
    ),
    "show": Told(
        "Draw which tokens of a video the model is allowed to see.",
        "hieravid show video.mp4 --question 'What happens?' --out tokens.webp",
    ),
    "evaluate": Told(
        "Measure how much accuracy pruning keeps; calibrate it for a model.",
        "hieravid evaluate compare --method hieravid --retention 0.3",
    ),
    "benchmark": Told(
        "Measure speed on this machine, side by side.",
        "hieravid benchmark engine",
    ),
}


class LazyCommands(TyperGroup):
    """The commands by name. Listing them imports none; running one, or asking for its help, imports that one."""

    def __init__(self, **attributes: Any) -> None:
        """Put a stand-in with a name and a line of help in the place of each command."""
        super().__init__(**attributes)
        for name, told in COMMANDS.items():
            self.add_command(TyperCommand(name, help=told.purpose))

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> tuple[str | None, Any, list[str]]:  # type: ignore[override]  # typer's own Context
        """Find the command that the first word names, and import it."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in and load_command(str(name)), rest


def load_command(name: str) -> Any:
    """The whole command `name` of `COMMANDS`, as `python -m jobs.NAME` has it, with an example under its help."""
    command = get_command(import_module(f"jobs.{name}").app)
    command.name = name
    command.epilog = f"Example: {COMMANDS[name].example}"
    return command


app = typer.Typer(cls=LazyCommands, pretty_exceptions_enable=False)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"hieravid {metadata.version('hieravid')}")
        raise typer.Exit


@app.callback(epilog=f"Start with: hieravid doctor. {EXIT_STATUS}")
def hieravid(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """Caption and question large video archives at a fraction of the tokens.

    A job file names a manifest of videos and an output; every COMMAND has its own --help.
    """


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line `words` (default: the process's own) and exit with its status."""
    sys.exit(run(list(sys.argv[1:] if words is None else words)))


def run(words: list[str]) -> int:
    """The exit status of a command line. A mistake in it is one line on stderr, not a page of usage."""
    try:
        status = get_command(app).main(words or ["--help"], prog_name="hieravid", standalone_mode=False)
    except TyperException as error:
        if told := error.format_message().strip():  # nothing is left to tell where a bare group has shown its help
            path = getattr(getattr(error, "ctx", None), "command_path", "hieravid")
            complain(f"{' '.join(told.split())} (see {path} --help)")
        return error.exit_code
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    main()
