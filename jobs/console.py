"""What the jobs print: the live display, the closing table, one clear line for an error."""

from __future__ import annotations

import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from jobs.exits import INTERRUPTED, complain
from jobs.options import Code, Overrides, Restart, RetryFailed
from jobs.tables import named_values
from pipeline.config import Task
from pipeline.config_load import load_config
from pipeline.errors import ClusterError, UserError
from pipeline.progress import Progress

if TYPE_CHECKING:
    from pipeline.summary import RunSummary

_EXIT_STATUS = (
    "A job that is started again on its output goes on where it was left. "
    "Exit status: 0 done; 1 more rows failed than failures.max_failed_share allows; 2 something of the job must be "
    "changed; 3 cluster or storage failed."
)
_LINE_INTERVAL_S = 5.0
_OF_ANSWERING = ("vision_ms", "prune_ms", "prefill_ms", "generate_ms")
_PHASES = {
    "fetch": "fetching the model",
    "wait": "waiting",
    "plan": "planning",
    "start": "starting",
    "answer": "answering",
    "done": "done",
}


@dataclass(frozen=True)
class Again:
    """Which committed rows a command line asks for again: failed ones (with one of `codes`), all, or none."""

    failed: bool = False
    codes: frozenset[str] = frozenset()
    restart: bool = False

    def check(self) -> None:
        """Raise UserError for options that do not go together."""
        if self.restart and self.failed:
            raise UserError("--restart answers every row again, --retry-failed only failed ones: give one of them")
        if self.codes and not self.failed:
            raise UserError("--code says which failed rows: it needs --retry-failed")


def job_command(task: Task, purpose: str) -> typer.Typer:
    """The command line of a job: `--config FILE [key.path=value …]`. `purpose` is the first line of its help."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=f"{purpose}\n\n{_EXIT_STATUS}")
    def main(
        config: Annotated[Path, typer.Option(help="the job file, YAML")],
        overrides: Overrides = None,
        retry_failed: RetryFailed = False,
        code: Code = None,
        restart: Restart = False,
    ) -> None:
        again = Again(retry_failed, frozenset(code or ()), restart)
        raise typer.Exit(run_command(task, config, overrides or [], again))

    return app


def run_command(task: Task, config: Path, overrides: Sequence[str], again: Again = Again()) -> int:
    """Run the job that a command line names, print what happens, and return the exit status.

    0 done; 1 more rows failed than the job allows; 2 the user must change something; 3 cluster or
    storage failed. Errors go to stderr, the result to stdout.
    """
    if threading.current_thread() is threading.main_thread():
        # A node that is taken away is told so first: to unwind hands the output's lease to the next start at once.
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        again.check()
        job = load_config(config, overrides, task)
        from pipeline.resume import Redo  # late: a mistake in the config should not wait for Ray to load
        from pipeline.run import run_job

        redo = None
        if again.restart or again.failed:
            redo = Redo("all" if again.restart else "failed", again.codes or None)
        with Display() as display:
            summary = run_job(job, display, redo=redo)
    except (UserError, ClusterError) as error:
        complain(str(error))
        return 2 if isinstance(error, UserError) else 3
    except KeyboardInterrupt:
        complain("interrupted; what is committed stays, and the same command does the rest")
        return INTERRUPTED
    show_summary(summary)
    if summary.rows < summary.manifest_rows:
        complain(f"stopped after {summary.rows} of {summary.manifest_rows} rows; the same command does the rest")
    if summary.exit_status == 1:
        complain(
            f"{summary.errors} of {summary.rows} rows failed ({summary.failed_share:.1%}), more than "
            f"failures.max_failed_share allows ({summary.max_failed_share:.1%}): {_codes(summary)}"
        )
    return summary.exit_status or 0


def _exit_on_signal(number: int, _: FrameType | None) -> None:
    complain("told to end; what is committed stays, and the same command does the rest")
    sys.exit(128 + number)


class _BarsAndLoad(Bars):
    """Bars, and below them a line that tells how busy the workers are."""

    load = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What rich draws, from top to bottom."""
        yield from super().get_renderables()
        if self.load:
            yield Text(self.load, style="dim")


class Display(AbstractContextManager["Display"]):
    """Shows a run's progress on stderr: bars on a terminal, else a plain line every few seconds, as for job logs."""

    def __init__(self) -> None:
        """Nothing is shown before the block is entered."""
        self._latest: Progress | None = None
        self._started = time.monotonic()
        self._bars: _BarsAndLoad | None = None
        self._ended = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Self:
        """Begin to show."""
        console = Console(stderr=True)
        if console.is_terminal:
            self._bars = _BarsAndLoad(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            self._bars.add_task("loading", total=None, told="")
            self._bars.start()
        else:
            self._lines.start()
        return self

    def __call__(self, progress: Progress) -> None:
        """Take a new state of the run."""
        self._latest = progress
        if progress.note:
            self._tell(progress.note)
        if self._bars is not None:
            self._bars.load = ", ".join(_load(progress))
            self._bars.update(
                self._bars.task_ids[0],
                description=_PHASES[progress.phase],
                total=progress.total or None,
                completed=progress.rows,
                told=", ".join(_details(progress)),
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the display."""
        self._ended.set()
        if self._bars is not None:
            self._bars.stop()
        else:
            self._lines.join()

    def _print_lines(self) -> None:
        while not self._ended.wait(_LINE_INTERVAL_S):
            if self._latest is not None:
                print(self._line(self._latest), file=sys.stderr, flush=True)

    def _line(self, now: Progress) -> str:
        rows = f" {now.rows} of {now.total} rows" if now.total else ""
        elapsed = f"{time.monotonic() - self._started:.0f} s"
        return ", ".join([_PHASES[now.phase] + rows, *_details(now), *_load(now), elapsed])

    def _tell(self, note: str) -> None:
        if self._bars is not None:
            self._bars.console.print(note, markup=False, highlight=False)
        else:
            print(note, file=sys.stderr, flush=True)


def _details(now: Progress) -> list[str]:
    """How many rows failed, the rate and the time that is left, as far as there are any."""
    told = [f"{now.failed} failed"] if now.failed else []
    if now.rows_per_s:
        told.append(f"{now.rows_per_s:.2g} rows/s" if now.rows_per_s < 10 else f"{now.rows_per_s:,.0f} rows/s")
    if now.remaining_s:
        told.append(f"about {_duration(now.remaining_s)} left")
    return told


def _load(now: Progress) -> list[str]:
    """How busy the workers are and which stage limits them, as far as it is known."""
    told = []
    if now.decoders_busy is not None and now.answerers_busy is not None:
        told += [f"decoders {now.decoders_busy * 100:.0f} % busy", f"answerers {now.answerers_busy * 100:.0f} %"]
    if now.limited_by:
        told.append(f"limited by {now.limited_by}")
    return told


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def show_summary(summary: RunSummary) -> None:
    """Print the closing table, where the results are, and a query that reads them."""
    Console().print(named_values(f"{summary.task} · {summary.name}", summary_rows(summary)))
    # Not through rich, which would break paths and commands at the width of the terminal.
    print(f"results  {summary.results}")
    place = summary.output if "**" in summary.results else f"{summary.output}/runs/{summary.run_id}"
    print(f"query    {query_command(place)}")


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """The lines of the closing table: a name and a value each."""
    busy_s = sum(summary.stage_ms.values()) / 1e3
    shares = [f"{name.removesuffix('_ms')} {ms / busy_s / 10:.0f} %" for name, ms in summary.stage_ms.items() if busy_s]
    starting_s = summary.elapsed_s - (summary.working_s or 0.0)
    decoding_s = summary.stage_ms["decode_ms"] / 1e3
    answering_s = sum(summary.stage_ms[stage] for stage in _OF_ANSWERING) / 1e3
    working_s = summary.working_s or math.inf
    failed = f"{summary.errors} ({_codes(summary)})" if summary.errors else "0"
    return [
        ("videos", f"{summary.videos:,}"),
        ("rows", f"{summary.ok:,} answered of {summary.rows:,}"),
        ("failed", failed),
        ("videos/min", _or_none(summary.videos_per_min, "{:,.1f}")),
        ("video tokens", f"{summary.video_tokens:,} in → {summary.kept_tokens:,} kept"),
        ("mean retention", f"{_or_none(summary.retention_mean, '{:.3f}')} ({_asked(summary)})"),
        ("busy", f"{busy_s:,.1f} s" + (f": {', '.join(shares)}" if shares else "")),
        ("at work", f"{decoding_s / working_s:.2g} decoders and {answering_s / working_s:.2g} answerers, on average"),
        ("waiting", f"{summary.wait_ms / max(1, summary.rows) / 1e3:,.1f} s a row from decoder to model"),
        ("took", f"{summary.elapsed_s:,.1f} s, {starting_s:,.1f} s of it starting and stopping"),
    ]


def _asked(summary: RunSummary) -> str:
    """What was asked for, and for a budget of hours what the rows took."""
    if summary.retention_requested is not None:
        return f"asked {summary.retention_requested:g}"
    [(key, amount)] = summary.budget.items()
    worked = f", {(summary.working_s or 0.0) / 3600:.3g} h worked" if key in ("gpu_hours", "deadline", "usd") else ""
    unit = " s" if key == "deadline" else ""
    return f"chosen for {key} {amount:g}{unit}{worked}"


def _or_none(value: float | None, form: str) -> str:
    return "none" if value is None else form.format(value)


def _codes(summary: RunSummary) -> str:
    return ", ".join(f"{code} {count}" for code, count in summary.error_codes.items())


def query_command(place: str) -> str:
    """A shell command that shows some results of an output or a run folder."""
    installed = Path(sys.executable).with_name("hieravid")
    command = [str(installed)] if installed.exists() else [sys.executable, "-m", "jobs.hieravid"]
    sql = "SELECT video_id, answer, retention_achieved, total_ms FROM results LIMIT 20"
    return shlex.join([*command, "query", place, sql])
