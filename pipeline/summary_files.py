"""The summary.json files of the runs that a start works on, kept in step with their result files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.config import JobConfig
from pipeline.errors import ClusterError, UserError
from pipeline.lease import LeaseLost
from pipeline.ledger import RunRecord
from pipeline.patience import patiently
from pipeline.results import Committed, describe, read_results
from pipeline.run_record import Plan
from pipeline.storage import join, read_bytes, write_atomic
from pipeline.summary import RunSummary, Tally, add_up, count_file, parse_summary, summarize

_INTERVAL_S = 10.0
_READERS = 16


def read_summary(plan: Plan) -> RunSummary | None:
    """What a run's summary.json tells; None where there is none, or one of another version."""
    try:
        return parse_summary(read_bytes(_place(plan)))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def _place(plan: Plan) -> str:
    return join(plan.folder, "summary.json")


@dataclass
class _Run:
    """A run, what earlier starts told of it, the numbers of its result files by shard, and what was written last."""

    plan: Plan
    earlier: RunSummary | None
    files: dict[str, Tally]
    written: RunSummary | None = None


class SummaryFiles:
    """Counts result files as they are committed, and writes the summary of their run every few seconds.

    While it does, `exit_status` in the files is null: a file that is found so belongs to a run
    whose driver was killed, and is made anew from the result files. `started_at` is when this start began.
    """

    def __init__(
        self,
        runs: Iterable[RunRecord],
        config: JobConfig,
        model: str,
        started_at: datetime,
        before_write: Callable[[], None],
    ) -> None:
        """Count what `runs` have committed already, and mark their summaries as those of runs that go on.

        `before_write` raises where nothing may be written any more. Raises UserError or ClusterError
        where a file cannot be read or written.
        """
        self._config = config
        self._model = model
        self.started_at = started_at
        self._before_write = before_write
        self._runs: dict[str, _Run] = {}
        for run in runs:
            self._runs[run.plan.run_id] = _Run(run.plan, read_summary(run.plan), _count(run))
        self._changed = set(self._runs)
        self._written = time.monotonic()
        self._write()

    def errors(self, run_ids: Iterable[str]) -> int:
        """How many committed rows of these runs have failed."""
        return sum(tally.errors for run_id in run_ids for tally in self._runs[run_id].files.values())

    def spent_s(self, run_ids: Iterable[str]) -> tuple[float, float]:
        """For how many seconds committed rows of these runs were in work, and how many all earlier starts took."""
        runs = [self._runs[run_id] for run_id in run_ids]
        worked = add_up(tally for run in runs for tally in run.files.values()).working_s
        return worked or 0.0, sum(run.earlier.elapsed_s for run in runs if run.earlier is not None)

    def add(self, file: Committed) -> None:
        """Count a result file, in the place of an earlier one of the same shard."""
        self._runs[file.run_id].files[file.shard] = count_file(file)
        self._changed.add(file.run_id)

    def update(self) -> None:
        """Write what has changed, if the last time is some seconds ago. Where the storage is away: the next time."""
        if self._changed and time.monotonic() - self._written >= _INTERVAL_S:
            self._written = time.monotonic()
            try:
                self._write()
            except LeaseLost:
                raise
            except ClusterError:
                return

    def finish(self, exit_status: int) -> RunSummary:
        """Write all summaries for good; the answer is that of the run, or of all together where there are several.

        `exit_status` is that of the job, and of each run that has not all of its results.
        """
        self._changed = set(self._runs)
        patiently(lambda: self._write(exit_status), final=(LeaseLost,))
        runs = list(self._runs.values())
        if len(runs) == 1 and runs[0].written is not None:
            return runs[0].written
        return self._together(runs, exit_status)

    def _write(self, exit_status: int | None = None) -> None:
        self._before_write()
        for run_id in sorted(self._changed):
            run = self._runs[run_id]
            run.written = self._summary(run, exit_status)
            write_atomic(_place(run.plan), run.written.to_json().encode())
            self._changed.discard(run_id)

    def _summary(self, run: _Run, exit_status: int | None) -> RunSummary:
        plan, tally = run.plan, add_up(run.files.values())
        if exit_status is not None and tally.shards == len(plan.shards):
            exit_status = int(tally.failed_share > self._config.failures.max_failed_share)
        return summarize(
            tally,
            datetime.fromisoformat(run.earlier.started_at) if run.earlier else self.started_at,
            (run.earlier.elapsed_s if run.earlier else 0.0) + self._elapsed_s(),
            exit_status=exit_status,
            run_id=plan.run_id,
            results=join(self._config.output, "results", f"run_date={plan.run_date}", f"{plan.run_id}-*.parquet"),
            manifest_rows=plan.rows,
            **self._facts(plan),
        )

    def _together(self, runs: list[_Run], exit_status: int) -> RunSummary:
        plan, tally = runs[-1].plan, add_up(tally for run in runs for tally in run.files.values())
        earlier = [run.earlier for run in runs if run.earlier]
        complete = all(len(run.files) == len(run.plan.shards) for run in runs)
        return summarize(
            tally,
            min([self.started_at, *(datetime.fromisoformat(summary.started_at) for summary in earlier)]),
            sum(summary.elapsed_s for summary in earlier) + self._elapsed_s(),
            exit_status=int(tally.failed_share > self._config.failures.max_failed_share) if complete else exit_status,
            run_id=plan.run_id,
            results=join(self._config.output, "results", "**", "*.parquet"),
            manifest_rows=sum(run.plan.rows for run in runs),
            **self._facts(plan),
        )

    def _elapsed_s(self) -> float:
        return (datetime.now(UTC) - self.started_at).total_seconds()

    def _facts(self, plan: Plan) -> dict[str, Any]:
        config = self._config
        return {
            "name": config.name,
            "task": config.task,
            "output": config.output,
            "fingerprint": plan.fingerprint,
            "model": self._model,
            "pruning_method": config.pruning.method,
            "retention_requested": config.budget.retention,
            "budget": {config.budget.key: getattr(config.budget, config.budget.key)},
            "max_failed_share": config.failures.max_failed_share,
        }


def _count(run: RunRecord) -> dict[str, Tally]:
    """The numbers of each result file that is there, by shard."""
    with ThreadPoolExecutor(_READERS) as readers:
        tallies = readers.map(
            lambda shard: count_file(describe(run.plan, shard, read_results(run.plan, shard))), run.done
        )
        return {shard.name: tally for shard, tally in zip(run.done, tallies, strict=True)}
