"""Metrics through Ray's own exporter, which every node of a cluster has. Without Ray nothing happens."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from pipeline.metric_table import (
    ANSWERER_REQUESTS,
    BOUNDS_S,
    BUSY_SECONDS,
    BUSY_STAGES,
    FETCHED_BYTES,
    KEPT_TOKENS,
    OUTPUT_TOKENS,
    ROWS,
    ROWS_LEFT,
    SHARDS,
    STAGE_COLUMNS,
    STAGE_SECONDS,
    VIDEO_TOKENS,
    Metric,
)

_REFRESH_S = 1.0  # of the gauges of an answerer: often enough for an exporter that looks every ten seconds

Outcome = tuple[str, str, str]
"""Status, error stage and error code of a row; the latter two are empty where it was answered."""


class RunMetrics:
    """The numbers of a run, gathered on the driver from its rows; `export` hands them to Ray.

    Gathering is cheap and needs no Ray. What a row tells is gathered in one thread and may be
    exported in another. Work that was done twice, because a worker died, counts twice in times and
    tokens; each row counts once.
    """

    def __init__(self, job_name: str, task: str) -> None:
        """Nothing was seen yet."""
        self.busy_s: dict[str, float] = dict.fromkeys(BUSY_STAGES, 0.0)
        self._job_name = job_name
        self._task = task
        self._lock = threading.Lock()  # of what follows
        self._sums: Counter[Metric] = Counter()
        self._outcomes: Mapping[Outcome, int] = {}
        self._rows_left = 0
        self._times: list[tuple[str, float]] = []
        self._exported: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
        self._instruments: dict[Metric, Any] = {}

    def observe(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the times, tokens and bytes of rows as they come in, those of one video one after the other."""
        with self._lock:
            video = None
            for row in rows:
                for stage, column in STAGE_COLUMNS.items():
                    if (ms := row[column]) is not None:
                        self._times.append((stage, ms / 1e3))
                        if stage in self.busy_s:
                            self.busy_s[stage] += ms / 1e3
                if (tokens := row["video_tokens"]) is not None:
                    self._sums[VIDEO_TOKENS] += tokens
                    self._sums[KEPT_TOKENS] += tokens * row["retention_achieved"]
                    self._sums[OUTPUT_TOKENS] += row["output_tokens"]
                if row["started_at"] != video:  # what was fetched, was fetched for all rows of the video
                    video = row["started_at"]
                    self._sums[FETCHED_BYTES] += row["bytes_fetched"] or 0

    def count(self, outcomes: Mapping[Outcome, int], rows_left: int, shards: int) -> None:
        """Take how many rows of each outcome there are by now, how many are to come, and how many shards are done."""
        with self._lock:
            self._outcomes = dict(outcomes)
            self._rows_left = rows_left
            self._sums[SHARDS] = shards

    def export(self, gauges: Mapping[tuple[Metric, str], float]) -> None:
        """Hand everything to Ray, which must be connected; `gauges` by metric and the label after the job's name.

        To be called every few seconds: Ray forgets a gauge that was not set for 20.
        """
        with self._lock:
            times, self._times = self._times, []
            sums: dict[tuple[Metric, tuple[str, ...]], float] = {(metric, ()): n for metric, n in self._sums.items()}
            sums |= {(ROWS, (self._task, *outcome)): n for outcome, n in self._outcomes.items()}
            sums |= {(BUSY_SECONDS, (stage,)): seconds for stage, seconds in self.busy_s.items()}
            rows_left = self._rows_left
        for key, value in sums.items():
            if (more := value - self._exported[key]) > 0:
                self._instrument(key[0]).inc(more, self._tags(*key))
                self._exported[key] = value
        stages = {stage: self._tags(STAGE_SECONDS, (stage,)) for stage in STAGE_COLUMNS}
        for stage, seconds in times:
            self._instrument(STAGE_SECONDS).observe(seconds, stages[stage])
        self._instrument(ROWS_LEFT).set(rows_left, self._tags(ROWS_LEFT))
        for (metric, label), value in gauges.items():
            self._instrument(metric).set(value, self._tags(metric, (label,)))

    def _tags(self, metric: Metric, labels: tuple[str, ...] = ()) -> dict[str, str]:
        return dict(zip(metric.labels, (self._job_name, *labels), strict=True))

    def _instrument(self, metric: Metric) -> Any:
        if metric not in self._instruments:
            self._instruments[metric] = instrument(metric)
        return self._instruments[metric]


def request_gauge() -> Callable[[int, int], None]:
    """What an answerer tells how many requests wait and how many run; it passes that on about once a second.

    Zero and zero is always passed on, as nothing may follow for long. In a process without Ray it does nothing.
    """
    ray = sys.modules.get("ray")  # the engine also runs where there is none
    if ray is None or not ray.is_initialized():
        return lambda waiting, running: None
    gauge = instrument(ANSWERER_REQUESTS)
    due = 0.0

    def tell(waiting: int, running: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or not (waiting or running):
            due = now + _REFRESH_S
            with suppress(Exception):  # no answer may be lost for it
                gauge.set(waiting, {"state": "waiting"})
                gauge.set(running, {"state": "running"})

    return tell


def instrument(metric: Metric) -> Any:
    """Ray's object for a metric. Ray keeps one of each name in a process, so that more of them add up."""
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.kind == "histogram":
        return Histogram(metric.given_name, metric.meaning, list(BOUNDS_S), metric.labels)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.given_name, metric.meaning, metric.labels)
