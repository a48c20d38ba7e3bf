"""Ask the results of runs: `python -m jobs.query OUTPUT_OR_RUN… (SQL | NAME)`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from jobs.exits import EXIT_STATUS, exit_status

if TYPE_CHECKING:
    from pipeline.query import Results
    from pipeline.query_files import Place

# Repeated from pipeline.queries, which is only imported where a question is asked.
NAMES = ("failures", "slowest", "retention", "cost", "diff")
_SQL = re.compile(r"\s*(?:select|with|from|describe|summarize|values)\s", re.IGNORECASE)
_MOST_SHOWN = 200
_WIDEST_CELL = 60

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Words:
    """A command line taken apart: the question, the places before it, what follows it."""

    question: str
    places: tuple[str, ...]
    after: tuple[str, ...]


_HELP = "\n\n".join(
    (
        "Ask the results of one or many runs, local or on S3.",
        "OUTPUT_OR_RUN is the output of a job, or one of its run folders (OUTPUT/runs/RUN_ID); several are asked "
        "together.",
        "The question is one SELECT over the table results, in DuckDB's dialect, or a name: failures (why rows "
        "failed), slowest (which rows, and where), retention (tokens kept, and what that saved), cost (busy time, and "
        "money with --usd-per-gpu-hour), or diff RUN_A RUN_B (what differs between two runs of OUTPUT, or between two "
        "folders). Nothing but the results can be read, and nothing is written but --out.",
        'As in: query out/captions "SELECT video_id, answer FROM results LIMIT 9", query out/captions cost --format '
        "csv, query s3://archive/captions diff RUN_A RUN_B --out changed.parquet.",
        EXIT_STATUS,
    )
)


@app.command(help=_HELP)
def query(
    words: Annotated[
        list[str], typer.Argument(metavar="OUTPUT_OR_RUN… (SQL | NAME)", help="where to look, and what for")
    ],
    form: Annotated[
        Literal["table", "csv", "json", "parquet"] | None,
        typer.Option("--format", help="default: table, or what the end of --out says"),
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="the same as --format json")] = False,
    out: Annotated[str | None, typer.Option(help="a file to write, local or s3://")] = None,
    usd: Annotated[
        float | None, typer.Option("--usd-per-gpu-hour", min=0, help="with cost: what an hour of a GPU costs")
    ] = None,
) -> None:
    """Print or write the answer."""
    with exit_status():
        from pipeline.errors import UserError
        from pipeline.queries import QUESTIONS
        from pipeline.query import Results
        from pipeline.query_files import find_place
        from pipeline.query_output import form_of

        asked = take_apart(words)
        if usd is not None and asked.question != "cost":
            raise UserError("--usd-per-gpu-hour is the price for the question cost")
        if is_json and form not in (None, "json"):
            raise UserError(f"--json and --format {form}: give one of them")
        chosen = "json" if is_json else form or (form_of(out) if out else "table")
        if chosen == "table" and out:
            raise UserError("--format table is for the screen: leave --out away, or take csv, json or parquet")
        if chosen == "parquet" and not out:
            raise UserError("--format parquet needs --out FILE")
        sides = find_sides(asked) if asked.question == "diff" else None
        with Results([find_place(word) for word in asked.places], sides) as results:
            named = QUESTIONS.get(asked.question)
            parameters = {"usd": usd} if asked.question == "cost" else None
            if sides is not None:
                _tell_difference(results, sides)
            _print_or_write(results, named.sql if named else asked.question, parameters, chosen, out)


def take_apart(words: list[str]) -> Words:
    """Find the question among the words: a known name, else the one that reads like SQL. UserError without one."""
    from pipeline.errors import UserError

    number = next((n for n, word in enumerate(words) if word in NAMES), None)
    if number is None:
        number = next((n for n, word in enumerate(words) if _SQL.match(word)), None)
    if number is None and " " in words[-1].strip():
        number = len(words) - 1  # nothing else could be meant; what is wrong with it is for DuckDB to say
    if number is None:
        raise UserError(f"what is asked? {_nearest(words[-1])}; or give one SELECT in quotes")
    question, before, after = words[number], tuple(words[:number]), tuple(words[number + 1 :])
    if question != "diff":
        before, after = before + after, ()
    if not before + after:
        raise UserError(f"{question}: of which output? Give its folder first, as in: hieravid query OUTPUT failures")
    return Words(question, before, after)


def _nearest(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, NAMES, n=1)
    return f"did you mean {near[0]}?" if near else f"the names are {', '.join(NAMES)}"


def find_sides(asked: Words) -> tuple[Place, Place]:
    """The two places that are compared: `OUTPUT diff RUN_A RUN_B`, or two folders. UserError for anything else."""
    from pipeline.errors import UserError
    from pipeline.query_files import Place, find_place, find_runs

    if not asked.places or not asked.after:
        folders = asked.places or asked.after
        if len(folders) != 2:
            raise UserError("diff compares two runs: hieravid query OUTPUT diff RUN_A RUN_B, or diff FOLDER_A FOLDER_B")
        return find_place(folders[0]), find_place(folders[1])
    if len(asked.after) != 2:
        raise UserError(f"diff compares two runs, and {len(asked.after)} are named after it")
    outputs = [find_place(word).output for word in asked.places]
    runs = {run_id: output for output in outputs for run_id in find_runs(Place(output))}
    for run_id in asked.after:
        if run_id not in runs:
            raise UserError(f"there is no run {run_id!r}; the runs are {', '.join(sorted(runs)[-5:])}")
    first, second = asked.after
    return Place(runs[first], first), Place(runs[second], second)


def _tell_difference(results: Results, sides: tuple[Place, Place]) -> None:
    """Say on stderr how the two sides compare as wholes."""
    from pipeline.queries import PAIRS_SUMMARY

    told = results.row(PAIRS_SUMMARY)
    lines = [f"A  {sides[0]}", f"B  {sides[1]}"]
    lines.append(
        f"{told['in_both']:,} rows in both, {told['changed']:,} of them differ; "
        f"{told['only_a']:,} only in A, {told['only_b']:,} only in B"
    )
    for name, unit, form in (("kept", "kept tokens", ",.0f"), ("busy", "busy seconds", ",.1f")):
        before, after = told[f"{name}_a"], told[f"{name}_b"]
        if before and after is not None:
            lines.append(f"{unit} of those: {before:{form}} → {after:{form}} ({after / before - 1:+.1%})")
    print("\n".join(lines), file=sys.stderr)


def _print_or_write(
    results: Results,
    sql: str,
    parameters: dict[str, Any] | None,
    form: Literal["table", "csv", "json", "parquet"],
    out: str | None,
) -> None:
    from pipeline.query_output import write_file, write_text

    reader = results.ask(sql, parameters)
    batches = results.batches(reader)
    if form == "table":
        _show(reader.schema.names, batches)
    elif out:
        rows = write_file(out, form, reader.schema, batches)
        print(f"{rows:,} rows in {out}", file=sys.stderr)
    elif form != "parquet":
        write_text(sys.stdout, form, reader.schema, batches)


def _show(names: list[str], batches: Any) -> None:
    """Print a table of the first rows, numbers to the right."""
    from itertools import islice

    from rich import box
    from rich.table import Table
    from rich.text import Text

    from jobs.tables import print_wide

    rows = (row for batch in batches for row in zip(*(column.to_pylist() for column in batch.columns), strict=True))
    shown = list(islice(rows, _MOST_SHOWN + 1))
    table = Table(box=box.SIMPLE_HEAD)
    for place, name in enumerate(names):
        is_number = any(isinstance(row[place], int | float) for row in shown)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in shown[:_MOST_SHOWN]:
        table.add_row(*(Text(_text(value)) for value in row))
    print_wide(table, 400)
    if len(shown) > _MOST_SHOWN:
        print(f"the first {_MOST_SHOWN} rows; --out FILE.csv takes all", file=sys.stderr)
    elif not shown:
        print("no rows", file=sys.stderr)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = " ".join((f"{value:,.6g}" if isinstance(value, float) else str(value)).split())
    return text if len(text) <= _WIDEST_CELL else f"{text[: _WIDEST_CELL - 1]}…"


if __name__ == "__main__":
    app()
