"""A whole job: validate, plan, connect, answer, commit, sum up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.answer_stream import Engine
from pipeline.config import JobConfig
from pipeline.errors import ClusterError, UserError, one_line
from pipeline.fingerprint import fingerprint
from pipeline.graph import Collector, Pools, answered_rows
from pipeline.manifest import check_manifest
from pipeline.model_load import JobModel, find_model, load_engine, model_error
from pipeline.plan import Plan, make_run_id, plan_run
from pipeline.progress import OnProgress, Progress
from pipeline.resolve import resolve_pruning
from pipeline.results import Committed
from pipeline.run_cluster import choose_pools, cluster
from pipeline.storage import check_writable, join, write_atomic
from pipeline.summary import RunSummary, Tally, summarize
from pipeline.video.limits import Limits
from pipeline.video.sampling import Sampling

if TYPE_CHECKING:
    from pipeline.engine import ModelInfo


def run_job(
    config: JobConfig, on_progress: OnProgress | None = None, load: Callable[[], Engine] | None = None
) -> RunSummary:
    """Answer every row of the manifest; afterwards each has exactly one row in the result files.

    Order: checks that need no cluster, the plan in the run folder, the cluster, the graph, the
    summary. `load` replaces the engine that the answerers load (it must pickle). Raises UserError
    when something of the job must be changed (before a cluster starts, except for weights that turn
    out unusable), ClusterError when cluster or storage fail: what was committed by then stays,
    `summary.json` counts it, and the shards still open have no result file, so that a later run
    knows to do them.
    """
    report = on_progress or (lambda _: None)
    started_at = datetime.now(UTC)
    report(Progress("plan"))
    check_manifest(config.manifest)
    check_writable(config.output)
    model = find_model(config.model, report)
    config = resolve_pruning(config, model.info)
    plan = plan_run(config, make_run_id(started_at), fingerprint(config, model.info.model_hash), started_at)
    finish = partial(_finish, plan, config, model.info.name, started_at)
    tally = Tally()
    try:
        _answer(config, plan, model, load, tally, report)
    except (UserError, ClusterError) as error:
        with suppress(UserError, ClusterError):  # the first error is the one to tell
            finish(tally, exit_status=2 if isinstance(error, UserError) else 3)
        raise
    summary = finish(tally, exit_status=1 if tally.failed_share > config.failures.max_failed_share else 0)
    report(Progress("done", tally.rows, tally.errors, plan.rows))
    return summary


def _answer(
    config: JobConfig,
    plan: Plan,
    model: JobModel,
    load: Callable[[], Engine] | None,
    tally: Tally,
    report: OnProgress,
) -> None:
    """Run the graph over the plan and commit every shard."""
    collector = Collector(plan)

    def commit(files: Iterable[Committed]) -> None:
        for file in files:
            tally.add(file)

    commit(collector.commit_refused())
    report(Progress("start", collector.rows, collector.failed, plan.rows))
    if plan.refused < plan.rows:
        with cluster():
            pools = choose_pools(config)
            decoder = decoder_arguments(config, model.info)
            answerer = {
                "load": load or _engine_loader(model, pools),
                "pruning": config.pruning,
                "sampling": config.generation.model_dump(exclude={"prompt"}),
            }
            for rows in _named_errors(answered_rows(plan.shards, pools, decoder, answerer)):
                commit(collector.add(rows))
                report(Progress("answer", collector.rows, collector.failed, plan.rows))
    commit(collector.commit_rest())


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


def _finish(
    plan: Plan, config: JobConfig, model: str, started_at: datetime, tally: Tally, exit_status: int
) -> RunSummary:
    """Write summary.json into the run folder."""
    summary = summarize(
        tally,
        started_at,
        exit_status=exit_status,
        run_id=plan.run_id,
        name=config.name,
        task=config.task,
        output=config.output,
        results=join(config.output, "results", f"run_date={plan.run_date}", f"{plan.run_id}-*.parquet"),
        fingerprint=plan.fingerprint,
        model=model,
        pruning_method=config.pruning.method,
        retention_requested=config.budget.retention,
        manifest_rows=plan.rows,
        max_failed_share=config.failures.max_failed_share,
    )
    write_atomic(join(plan.folder, "summary.json"), summary.to_json().encode())
    return summary
