"""What a start on an output has to do: first what earlier starts left open, then what is new or asked for again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal

from pipeline.budget.allowance import Allowance
from pipeline.config import BudgetConfig, JobConfig
from pipeline.error_budget import Standing
from pipeline.errors import ERROR_CODES, UserError
from pipeline.item_ids import KnownItems
from pipeline.ledger import Ledger, RunRecord, failed_items, read_ledger
from pipeline.plan import make_run_id, manifest_items, plan_run, subset_shard
from pipeline.run_record import Plan, Shard, give_up
from pipeline.summary_files import SummaryFiles, read_summary

_READERS = 16  # small files of an object store are read at once: each takes a round trip and little else


@dataclass(frozen=True)
class Redo:
    """Which committed rows are answered again: `all` of the manifest, or the `failed` ones, of `codes` where given.

    Failed rows are those of every run of the output that asked the same, whatever its manifest. Rows
    that the manifest stage refused stay as they are.
    """

    rows: Literal["all", "failed"]
    codes: frozenset[str] | None = None

    def __post_init__(self) -> None:
        """Refuse codes that no row can have (UserError)."""
        if unknown := sorted((self.codes or frozenset()) - ERROR_CODES.keys()):
            raise UserError(f"{unknown[0]!r} is not an error code; there are {', '.join(ERROR_CODES)}")


@dataclass(frozen=True)
class Work:
    """The shards to do, each with the plan that it belongs to.

    `runs` are those of the tasks and those whose summary is not final, oldest first; `planned` is the
    plan that was just made, if any; `latest` is the newest run of all.
    """

    tasks: tuple[tuple[Plan, Shard], ...]
    runs: tuple[RunRecord, ...]
    planned: Plan | None
    latest: RunRecord

    def standing(self, summaries: SummaryFiles) -> Standing:
        """What of the tasks' runs is committed and not done again.

        Rows that are done again count as failed ones, as long as there are such: exact for a retry of
        failed rows, and for a restart a number that is certain.
        """
        plans = {plan.run_id: plan for plan, _ in self.tasks}
        to_do = sum(shard.rows for _, shard in self.tasks)
        again = sum(shard.rows for _, shard in self.tasks if shard.partial)
        return Standing(
            rows=sum(plan.rows for plan in plans.values()) - to_do,
            failed=max(0, summaries.errors(plans) - again),
        )

    def allowance(self, budget: BudgetConfig, summaries: SummaryFiles) -> Allowance:
        """What of the job's budget is for these tasks.

        A run that was broken off goes on with what it has left; rows that are answered again get their share anew.
        """
        plans = {plan.run_id: plan for plan, _ in self.tasks}
        if any(shard.partial for _, shard in self.tasks):
            to_do = sum(shard.rows for _, shard in self.tasks)
            return Allowance(budget, to_do / sum(plan.rows for plan in plans.values()))
        return Allowance(budget, 1.0, *summaries.spent_s(plans))


def find_work(config: JobConfig, fingerprint: str, now: datetime, redo: Redo | None, check: Callable[[], None]) -> Work:
    """Take stock of the output, and plan what of the manifest no run has taken on yet.

    To be called under the output's lease, which `check` confirms. Raises what `plan_run` does.
    """
    ledger = _settled_ledger(config, fingerprint)
    tasks = [(run.plan, shard) for run in ledger.runs for shard in run.open]
    if redo is not None:
        tasks += _again(config, fingerprint, ledger, redo)
    plan = plan_run(config, make_run_id(now), fingerprint, now, ledger, check)
    runs = list(ledger.runs)
    if plan is not None:
        runs.append(RunRecord(plan, frozenset()))
        tasks += [(plan, shard) for shard in plan.shards]
    touched = {plan.run_id for plan, _ in tasks}
    with ThreadPoolExecutor(_READERS) as readers:
        summaries = readers.map(lambda run: read_summary(run.plan), runs)
        chosen = tuple(
            run
            for run, summary in zip(runs, summaries, strict=True)
            if run.plan.run_id in touched or summary is None or summary.exit_status is None
        )
    return Work(tuple(tasks), chosen, plan, runs[-1])


def _settled_ledger(config: JobConfig, fingerprint: str) -> Ledger:
    """What the output holds, and no run can begin there any more but ours."""
    while True:
        ledger = read_ledger(config.output, fingerprint, config.task)
        if all(give_up(config.output, run_id) for run_id in ledger.unbegun):
            return ledger


def _again(config: JobConfig, fingerprint: str, ledger: Ledger, redo: Redo) -> Iterator[tuple[Plan, Shard]]:
    """Partial shards of the committed rows that are to be answered again."""
    items = manifest_items(config, fingerprint) if redo.rows == "all" else None
    done = [(run.plan, shard) for run in ledger.runs for shard in run.done]
    with ThreadPoolExecutor(_READERS) as readers:
        subsets = readers.map(partial(_subset, items=items, codes=redo.codes), *zip(*done, strict=True)) if done else ()
        for (plan, _), subset in zip(done, subsets, strict=True):
            if subset is not None:
                yield plan, subset


def _subset(plan: Plan, shard: Shard, items: KnownItems | None, codes: frozenset[str] | None) -> Shard | None:
    wanted = failed_items(plan, shard, codes) if items is None else items
    return subset_shard(plan, shard, wanted) if len(wanted) else None
