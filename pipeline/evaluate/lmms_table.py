"""Scores of public benchmarks, and the table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pipeline.evaluate.markdown import grid
from pipeline.evaluate.origin import Origin
from pipeline.evaluate.variants import UNPRUNED


@dataclass(frozen=True)
class BenchmarkScore:
    """One cell: `score` in the task's own unit, as lmms-eval reports it, a group's the mean over its parts.

    `minimum` is set, and all that would be measured None, where the method cannot reach `retention`. `failed` counts
    questions whose video could not be decoded; they were answered with nothing. The last four are means over answers.
    """

    task: str
    method: str
    retention: float
    minimum: float | None = None
    score: float | None = None
    questions: int | None = None
    failed: int | None = None
    retention_achieved: float | None = None
    flops_ratio: float | None = None
    kv_ratio: float | None = None
    prefill_ms: float | None = None


def write_benchmarks(scores: Sequence[BenchmarkScore], folder: Path, origin: Origin) -> str:
    """Write table.md; returns the table."""
    table = benchmark_markdown(scores)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(f"{table}\n\n{origin.line()}\n")
    return table


def benchmark_markdown(scores: Sequence[BenchmarkScore]) -> str:
    """A Markdown table: a row a method and retention, of each task the score and its share of the unpruned one in %.

    The last column is the mean of the shares, of rows that have all of them.
    """
    tasks = list(dict.fromkeys(score.task for score in scores))
    whole = {score.task: score.score for score in scores if score.method == UNPRUNED}
    lines = []
    for method, retention in dict.fromkeys((score.method, score.retention) for score in scores):
        row = {score.task: score for score in scores if (score.method, score.retention) == (method, retention)}
        shares = {task: share for task in tasks if (share := _share(row[task], whole[task])) is not None}
        cells = [_cell(row[task], shares.get(task)) for task in tasks]
        mean = f"{fmean(shares.values()):.1f}" if len(shares) == len(tasks) else ""
        lines.append(
            [
                method,
                f"{retention:g}",
                _mean_of(row.values(), "retention_achieved"),
                _mean_of(row.values(), "flops_ratio"),
                *cells,
                mean,
            ]
        )
    table = grid(["method", "at", "retention", "FLOPs", *(f"{task} (share)" for task in tasks), "mean share"], lines)
    failed = sum(score.failed or 0 for score in scores)
    return f"{table}\n\n{failed} questions had a video that could not be decoded." if failed else table


def _share(score: BenchmarkScore, whole: float | None) -> float | None:
    return 100 * score.score / whole if score.score is not None and whole else None


def _cell(score: BenchmarkScore, share: float | None) -> str:
    if score.minimum is not None:
        return f"unreachable (from {score.minimum:.3f})"
    value = f"{score.score:.4g}"
    return value if share is None else f"{value} ({share:.1f})"


def _mean_of(row: Iterable[BenchmarkScore], name: str) -> str:
    values = [value for score in row if (value := getattr(score, name)) is not None]
    return f"{fmean(values):.3f}" if values else ""
