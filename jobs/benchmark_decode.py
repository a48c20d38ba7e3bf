"""The `decode` command of `python -m jobs.benchmark`."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.tables import print_wide

_WIDTH = 150  # of the table where there is no terminal


def decode(
    files: Annotated[
        list[Path] | None, typer.Argument(help="videos to measure on, in place of the benchmark's")
    ] = None,
    clip: Annotated[
        list[str] | None,
        typer.Option(help="name or pattern of the benchmark's clips; may be repeated ('*' where no files are given)"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="write header, rows, aims and failures to this file")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="frames that each is asked for")] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="measurements of each, of which the least is reported; long ones are done once")
    ] = 2,
    cache: Annotated[
        Path, typer.Option(help="folder of the clips and of what is measured; a further call goes on from there")
    ] = Path("out/benchmark-decode"),
) -> None:
    """Reading frames: ours beside decord, PyAV and, where it is installed, torchcodec; exact and by keyframes.

    The clips take 3 minutes to make and 1.5 GB of disk, all of the benchmark about 25 minutes of an idle machine.
    """
    # late: the other commands need no decoder
    from pipeline.benchmark.decode.checks import check_clips
    from pipeline.benchmark.decode.clips import RECIPES
    from pipeline.benchmark.decode.report import as_table, describe, notes, write_json
    from pipeline.benchmark.decode.run import Bench, Clip

    patterns = clip or ([] if files else ["*"])
    recipes = [recipe for recipe in RECIPES if any(fnmatch(recipe.name, pattern) for pattern in patterns)]
    for wrong in [pattern for pattern in patterns if not any(fnmatch(recipe.name, pattern) for recipe in RECIPES)]:
        _refuse(f"--clip {wrong}: there are only {', '.join(recipe.name for recipe in RECIPES)}")
    for file in files or []:
        if not file.is_file():
            _refuse(f"{file}: no such file")
    with Console(stderr=True).status("measuring") as status:
        bench = Bench(cache, frames, repeats, status.update)
        measured = [bench.measure(bench.make(recipe)) for recipe in recipes]
        measured += [bench.measure(Clip(str(file), file)) for file in files or []]
    header, checks = describe(bench), check_clips(measured)
    title = f"Reading {frames} frames, one thread"
    print_wide(as_table(measured, title), _WIDTH)
    for line in notes(bench, measured):
        print(line)
    print(" · ".join(f"{name} {value}" for name, value in header.items()))
    print("aims:")
    for check in checks:
        print(f"  {check}")
    if json_file is not None:
        write_json(json_file, header, measured, checks)
        print(f"rows  {json_file}")


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(2)
