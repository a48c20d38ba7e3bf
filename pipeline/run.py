"""A whole job: validate, take the lease, plan, connect, answer, commit, sum up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.answer_stream import Engine
from pipeline.budget.allowance import Allowance
from pipeline.budget.on_cluster import settle_budget
from pipeline.budget.shared_retention import SharedRetention
from pipeline.budget.steering import Steering
from pipeline.collector import Collector
from pipeline.config import JobConfig
from pipeline.doctor.job import check_job
from pipeline.error_budget import ErrorBudget
from pipeline.errors import ClusterError, UserError, one_line
from pipeline.fingerprint import fingerprint
from pipeline.graph import answered_rows
from pipeline.lease import LeaseLost, hold_lease
from pipeline.manifest import check_manifest
from pipeline.model_load import JobModel, find_model, load_engine, model_error
from pipeline.pools import Pools
from pipeline.progress import OnProgress, Progress
from pipeline.resolve import resolve_method, resolve_pruning
from pipeline.results import Committed
from pipeline.resume import Redo, Work, find_work
from pipeline.row_samples import RowSamples
from pipeline.run_cluster import choose_pools, cluster
from pipeline.storage import check_writable
from pipeline.summary import RunSummary
from pipeline.summary_files import SummaryFiles, read_summary
from pipeline.video.limits import Limits
from pipeline.video.sampling import Sampling
from pipeline.watch import Watch

if TYPE_CHECKING:
    from pipeline.engine import ModelInfo


def run_job(
    config: JobConfig,
    on_progress: OnProgress | None = None,
    load: Callable[[], Engine] | None = None,
    redo: Redo | None = None,
) -> RunSummary:
    """Answer every row of the manifest; afterwards each has exactly one row in the result files of the output.

    A job that is started again goes on: shards of earlier starts that are still open are done, what
    is committed is left alone, unless `redo` asks for it, and only rows that no start has taken on
    are planned. Order: checks that need no cluster, the output's lease, the plan in the run folder,
    the cluster, the graph, the summaries. Where a retention is to be worked out from the budget, some
    videos are timed on the cluster before the graph; one out of reach is a UserError only then.

    The answer tells of the run that was done, of all together where a start went on with several,
    and of the latest where nothing was left to do. `load` replaces the engine that the answerers
    load (it must pickle). Raises UserError when something of the job must be changed (before a
    cluster starts, except for weights that turn out unusable) or another run holds the output;
    ClusterError when cluster or storage fail, no stage makes progress, or the lease was lost: what
    was committed by then stays, `summary.json` counts it, and a later start does the rest.
    """
    report = on_progress or (lambda _: None)
    started_at = datetime.now(UTC)
    report(Progress("plan"))
    check_manifest(config.manifest)
    check_writable(config.output)
    model = find_model(config.model, report)
    check_job(config, model)
    config = resolve_method(config, model.info) if config.budget.is_derived else resolve_pruning(config, model.info)
    with hold_lease(config.output, f"the job {config.name}", lambda told: report(Progress("wait", note=told))) as lease:
        name = fingerprint(config, model.info.model_hash)
        work = find_work(config, name, started_at, redo, lease.check)
        if not work.runs and (latest := read_summary(work.latest.plan)):
            report(Progress("done", note=_nothing_to_do(latest)))
            return replace(latest, exit_status=0)
        summaries = SummaryFiles(work.runs, config, model.info.name, started_at, lease.check)
        collector = Collector(work.tasks, lease.check)
        try:
            if work.tasks:
                report(Progress("start", collector.rows, collector.failed, collector.total, _going_on(work)))
            stopped = _answer(config, model, work, collector, summaries, load, report)
        except LeaseLost:
            raise  # the summaries are another run's to write now
        except (UserError, ClusterError, KeyboardInterrupt, SystemExit) as error:  # an exit: of SIGTERM, in a job
            with suppress(UserError, ClusterError):  # the first error is the one to tell
                summaries.finish(_exit_status(error))
            raise
        summary = summaries.finish(1 if stopped else 0)
        note = "" if work.tasks else _nothing_to_do(summary)
        report(Progress("done", collector.rows, collector.failed, collector.total, note))
        return summary


def _steer(
    config: JobConfig,
    model: JobModel,
    pools: Pools,
    rows: int,
    allowance: Allowance,
    started_at: datetime,
    report: OnProgress,
) -> Steering:
    """Work out which retention so many rows begin with, for a budget that is another amount."""
    key = config.budget.key

    def elapsed_s() -> float:
        return (datetime.now(UTC) - started_at).total_seconds()

    report(Progress("start", note=f"a few videos are timed, to find the retention that meets budget.{key}"))
    settled = settle_budget(config, model, pools, rows, allowance, elapsed_s())
    report(Progress("start", note=f"budget.{key} comes to a retention of {settled.retention:.4g}, to begin with"))
    return Steering(allowance.left(settled.costs.pools, elapsed_s()), settled.costs, settled.retention, rows)


def _answer(
    config: JobConfig,
    model: JobModel,
    work: Work,
    collector: Collector,
    summaries: SummaryFiles,
    load: Callable[[], Engine] | None,
    report: OnProgress,
) -> bool:
    """Do the tasks of `work` and commit them; whether it stopped early because too many rows fail."""
    watch = Watch(config.name, config.task, collector)

    def commit(files: Iterable[Committed]) -> None:
        for file in files:
            summaries.add(file)
            watch.committed()

    budget = ErrorBudget(config.failures.max_failed_share, collector, work.standing(summaries))
    stopped = False
    commit(collector.commit_refused())
    if collector.rows < collector.total:
        with cluster(), watch.exporting(pools := choose_pools(config)):
            decoder = decoder_arguments(config, model.info)
            steering = None
            if config.budget.is_derived:
                to_do = collector.total - collector.refused
                allowance = work.allowance(config.budget, summaries)
                steering = _steer(config, model, pools, to_do, allowance, summaries.started_at, report)
                config = config.settled(steering.retention)
            answerer = {
                "load": load or _engine_loader(model, pools),
                "pruning": config.pruning,
                "sampling": config.generation.model_dump(exclude={"prompt"}),
                "is_uneven": config.budget.adaptive,
                "samples": RowSamples.among(work.tasks, config.report.samples) if config.report.samples else None,
            }
            if steering is not None:
                answerer["retention"] = retention = SharedRetention(steering.retention)
            shards = [shard for _, shard in work.tasks]
            graph = answered_rows(shards, pools, decoder, answerer, config.failures.stall_timeout_s)
            with closing(_named_errors(graph)) as batches:
                for rows in batches:
                    watch.add(rows)
                    if steering is not None:
                        steering.see(rows)
                        retention.set(steering.retention)
                    commit(collector.add(rows))
                    summaries.update()
                    note = ""
                    if not stopped and budget.is_exceeded():
                        stopped = True
                        collector.take_no_more()
                        note = budget.told()
                    report(watch.moment(note))
                    if stopped and not collector.in_flight:
                        return True
            commit(collector.commit_rest())
    return stopped


def _going_on(work: Work) -> str:
    """What of the tasks is not of a manifest that was just planned, in words."""
    again = sum(shard.rows for _, shard in work.tasks if shard.partial)
    earlier = sum(shard.rows for plan, shard in work.tasks if not shard.partial and plan is not work.planned)
    told = [f"{earlier} rows that an earlier start left open"] if earlier else []
    told += [f"{again} committed rows again"] if again else []
    return f"answering {' and '.join(told)}" if told else ""


def _nothing_to_do(latest: RunSummary) -> str:
    return f"nothing to do: every row of the manifest has its result ({latest.run_id} was the last run)"


def _exit_status(error: BaseException) -> int:
    """As the jobs report it."""
    return 2 if isinstance(error, UserError) else 3 if isinstance(error, ClusterError) else 130


def decoder_arguments(config: JobConfig, model: ModelInfo) -> dict[str, Any]:
    """What the constructor of `pipeline.stages.Decoder` takes."""
    video = config.video
    return {
        "sampling": Sampling(model.default_frames if video.frames == "auto" else video.frames, video.policy, video.fps),
        "backend": video.backend,
        "frame_size": model.frame_size,
        "limits": Limits(decode_timeout_s=video.decode_timeout_s, memory_mb=video.decoder_memory_mb),
        "retries": config.failures.retries,
    }


def _engine_loader(model: JobModel, pools: Pools) -> Callable[[], Engine]:
    # Without a GPU of its own an actor must not find one that belongs to another.
    device = model.settings.device
    device = "cpu" if device == "auto" and pools.gpus_per_answerer == 0 else device
    return partial(load_engine, model, device, pools.threads_per_answerer)


def _named_errors(batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Pass batches through; turn what stops the graph into UserError or ClusterError."""
    try:
        yield from batches
    except (UserError, ClusterError):
        raise
    except Exception as error:
        # What an actor could not load; Ray puts its traceback into the message, causes first.
        if told := re.findall(r"\b(ModelError|UserError|ClusterError): (.+)", str(error)):
            kind, message = told[-1]
            raise {"UserError": UserError, "ClusterError": ClusterError}.get(kind, model_error)(message) from error
        raise ClusterError(f"the graph stopped: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    # Ray puts the remote traceback into the message; its last line names the cause.
    lines = [line for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__)
