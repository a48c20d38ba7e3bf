"""A table of public benchmarks: lmms-eval over tasks, methods and retentions, one finished cell a file."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.engine import ModelError
from pipeline.engine.info import DeviceName, DtypeName
from pipeline.errors import UserError
from pipeline.evaluate.lmms_clips import CHOICE_TASK, TASK, write_tasks
from pipeline.evaluate.lmms_table import BenchmarkScore
from pipeline.evaluate.variants import UNPRUNED, Variant
from pipeline.provenance import code_version
from pipeline.tiny.world import VALIDATION_SEEDS
from pruning import UnreachableRetentionError
from pruning.calibration import CalibrationError

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager

    from pipeline.evaluate.lmms import VideoLLMAdapter

PAPER_TASKS = ("videomme", "mvbench", "egoschema_subset", "nextqa_mc_test")
"""The benchmarks of HieraVid's tables by lmms-eval's names. Of EgoSchema the part whose answers are public: the whole
of it, `egoschema`, is scored by a server that lmms-eval sends the model's answers to."""


@dataclass(frozen=True)
class BenchmarkJob:
    """What to run: `tasks` by lmms-eval's names, `variants` at each of `retentions`, and always the unpruned model.

    `frames` a video, None for what the model was trained for; `limit` questions a task, None for all; `clips` of the
    validation split make up our own tasks, their videos reused from `cache`. All files go into `out`.
    """

    model: str
    tasks: tuple[str, ...]
    variants: tuple[Variant, ...]
    retentions: tuple[float, ...]
    out: Path
    frames: int | None = None
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    batch_size: int = 1
    limit: int | None = None
    clips: int = 24
    cache: Path | None = None


def run_benchmarks(job: BenchmarkJob, report: Callable[[str], None]) -> list[BenchmarkScore]:
    """Run what is missing of a table and return all of it, task by task, the unpruned model first.

    A cell that lies in `out`/cells from an earlier call with the same model, code and settings is read instead.
    Raises UserError if lmms-eval is not installed or does not know a task, and where a method, the model or its
    calibration cannot be used.
    """
    if find_spec("lmms_eval") is None:
        raise UserError("lmms-eval is not installed in this environment: `make lmms` makes one that has it")
    for variant in job.variants:
        if variant.config() is None or variant.clips:
            raise UserError(f"method {variant.label}: benchmarks know no oracle, and no @clips")
    os.environ.setdefault("HF_HOME", str(Path.home() / ".cache" / "huggingface"))  # some of its tasks insist on it
    os.environ.setdefault("LOGURU_LEVEL", "WARNING")  # it tells at length which files are no tasks
    manager = _find_tasks(job)
    cells = list(_cells(job))
    return [
        _run_cell(job, manager, task, variant, retention, report) for task in job.tasks for variant, retention in cells
    ]


def _find_tasks(job: BenchmarkJob) -> TaskManager:
    """lmms-eval's index of tasks, with ours if they are asked for."""
    from lmms_eval.tasks import TaskManager

    own = {TASK, CHOICE_TASK}
    folder = job.out / "clips"
    if own & set(job.tasks):
        write_tasks(VALIDATION_SEEDS[: job.clips], folder, job.cache)
    manager = TaskManager(
        include_path=str(folder) if own & set(job.tasks) else None, include_defaults=not own >= set(job.tasks)
    )
    for task in job.tasks:
        if task not in manager.all_tasks:
            close = difflib.get_close_matches(task, [*manager.all_tasks, *own], n=1)
            raise UserError(f"lmms-eval has no task {task!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    return manager


def _cells(job: BenchmarkJob) -> Iterator[tuple[Variant, float]]:
    yield Variant(UNPRUNED, UNPRUNED), 1.0
    for variant in job.variants:
        if variant.method != UNPRUNED:
            yield from ((variant, retention) for retention in job.retentions)


def _run_cell(
    job: BenchmarkJob,
    manager: TaskManager,
    task: str,
    variant: Variant,
    retention: float,
    report: Callable[[str], None],
) -> BenchmarkScore:
    adapter = _load(job, variant, retention)
    settings = {
        **adapter.describe(),
        "task": task,
        "limit": job.limit,
        "clips": job.clips if task in (TASK, CHOICE_TASK) else None,
        "code": code_version(),
        "lmms_eval": metadata.version("lmms-eval"),
    }
    path = job.out / "cells" / f"{task}--{re.sub('[^A-Za-z0-9]+', '-', variant.label)}--{retention:g}.json"
    if path.is_file():
        found = json.loads(path.read_text())
        if found["settings"] == settings:
            return BenchmarkScore(**found["score"])
    report(f"{task}: {variant.label} at {retention:g}")
    named = partial(BenchmarkScore, task, variant.label, retention)
    samples: dict[str, Any] = {}
    try:
        measured, samples = _evaluate(adapter, manager, task, job)
        score = named(**measured)
    except UnreachableRetentionError as error:
        score = named(minimum=error.minimum)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(
        json.dumps({"settings": settings, "score": asdict(score), "samples": samples}, indent=1, default=str)
    )
    partial_path.replace(path)
    return score


def _load(job: BenchmarkJob, variant: Variant, retention: float) -> VideoLLMAdapter:
    from pipeline.evaluate.lmms import VideoLLMAdapter

    try:
        return VideoLLMAdapter(
            job.model,
            variant.method,
            retention,
            frames=job.frames,
            device=job.device,
            dtype=job.dtype,
            batch_size=job.batch_size,
            **dict(variant.options),
        )
    except ModelError as error:
        raise UserError(f"model {job.model}: {error}") from error
    except CalibrationError as error:
        raise UserError(f"method {variant.label}: {error}") from error


def _evaluate(
    adapter: VideoLLMAdapter, manager: TaskManager, task: str, job: BenchmarkJob
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let lmms-eval run one task: what BenchmarkScore holds of it, and its answers by part of the task."""
    from lmms_eval.evaluator import simple_evaluate

    results = simple_evaluate(
        model=adapter, tasks=[task], task_manager=manager, limit=job.limit, bootstrap_iters=0, log_samples=True
    )
    parts = results["configs"]
    stats = adapter.stats
    measured = {
        "score": fmean(_score(results["results"][part], parts[part]) for part in parts),
        "questions": sum(results["n-samples"][part]["effective"] for part in parts),
        "failed": len(adapter.videos.failures),
    }
    for name in ("retention_achieved", "flops_ratio", "kv_ratio", "prefill_ms"):
        measured[name] = fmean(getattr(answer, name) for answer in stats) if stats else None
    answers = {
        part: [{"id": s["doc_id"], "target": s["target"], "answer": s["filtered_resps"]} for s in samples]
        for part, samples in results["samples"].items()
    }
    return measured, answers


def _score(found: dict[str, Any], config: dict[str, Any]) -> float:
    """The value of a task's first metric, which lmms-eval calls `metric,filter`."""
    metric = config["metric_list"][0]["metric"]
    return float(next(value for name, value in found.items() if name.startswith(f"{metric},")))
