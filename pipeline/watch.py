"""What is told of a run while it answers: to its caller as Progress, to Ray's exporter as metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.collector import Collector
from pipeline.metric_table import BUSY_SHARE, WORKERS
from pipeline.metrics import RunMetrics
from pipeline.pools import Pools, most
from pipeline.progress import Pace, Progress, Stage
from pipeline.stages import VIDEOS_AT_ONCE

_EXPORT_S = 5.0  # Ray's exporter looks every 10 s
_END_S = 2.0  # what the end of a run may wait for an export that hangs
_OF_ANSWERING = ("vision", "prune", "prefill", "generate")
_LIMITING = 0.5  # a stage that is busy for less of its time limits nothing


class Watch:
    """Sees the rows of a run, and what its collector makes of them."""

    def __init__(self, job_name: str, task: str, collector: Collector) -> None:
        """Nothing is told yet."""
        self._collector = collector
        self._metrics = RunMetrics(job_name, task)
        self._shards = 0
        self._pace = Pace()
        self._workers: dict[str, int] = {}
        self._shares: dict[str, float] = {}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows as they come from the workers."""
        self._metrics.observe(rows)

    def committed(self) -> None:
        """Count a shard, and with it rows that came from no worker."""
        self._shards += 1
        self._count()

    def moment(self, note: str = "") -> Progress:
        """How far the run is, and how busy its stages are, after the collector took the latest rows."""
        self._count()
        collector, busy_s = self._collector, self._metrics.busy_s
        stages_s = (busy_s["fetch"], busy_s["decode"], sum(busy_s[stage] for stage in _OF_ANSWERING))
        rates = self._pace.rates((collector.rows, *stages_s), time.monotonic())
        if rates is None or not self._workers:
            return Progress("answer", collector.rows, collector.failed, collector.total, note)
        rate, fetching, decoding, answering = rates
        decoders, answerers = self._workers["decoders"], self._workers["answerers"]
        shares: dict[Stage, float] = {
            "fetching": fetching / (decoders * VIDEOS_AT_ONCE),
            "decoding": decoding / decoders,
            "answering": answering / answerers,
        }
        slowest = max(shares, key=lambda stage: shares[stage])
        decoders_busy, answerers_busy = min(1.0, shares["decoding"]), min(1.0, shares["answering"])
        self._shares = {"decoders": decoders_busy, "answerers": answerers_busy}
        return Progress(
            "answer",
            collector.rows,
            collector.failed,
            collector.total,
            note,
            rows_per_s=rate or None,
            remaining_s=(collector.total - collector.rows) / rate if rate else None,
            decoders_busy=decoders_busy,
            answerers_busy=answerers_busy,
            limited_by=slowest if shares[slowest] >= _LIMITING else None,
        )

    @contextmanager
    def exporting(self, pools: Pools) -> Iterator[None]:
        """Export metrics for the length of a block, to the cluster that is connected. Nothing of it can fail a run."""
        self._workers = {"decoders": most(pools.decoders), "answerers": most(pools.answerers)}
        ended = threading.Event()
        thread = threading.Thread(target=self._export_until, args=(ended,), name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(_END_S)

    def _export_until(self, ended: threading.Event) -> None:
        """Export every few seconds, and a last time at the end."""
        is_last = False
        while not is_last:
            is_last = ended.wait(_EXPORT_S)
            with suppress(Exception):  # a cluster that is going away, or another Ray: the run tells of it, or need not
                self._workers |= {} if is_last else _alive()
            gauges = {(WORKERS, pool): float(count) for pool, count in self._workers.items()}
            gauges |= {(BUSY_SHARE, pool): share for pool, share in self._shares.items()}
            with suppress(Exception):
                self._metrics.export(gauges)

    def _count(self) -> None:
        collector = self._collector
        self._metrics.count(collector.outcomes, collector.total - collector.rows, self._shards)


def _alive() -> dict[str, int]:
    """How many workers of each pool live, without pools that have none. Raises what Ray raises.

    Ray's public API asks its dashboard, which a run on one machine has not; this asks the head node.
    """
    import ray
    from ray._private.state import actors

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    names = [actor["ActorClassName"] for actor in actors(job_id=job, actor_state_name="ALIVE").values()]
    counts = {
        pool: sum(f"({stage})" in name for name in names)
        for pool, stage in (("decoders", "Decoder"), ("answerers", "Answerer"))
    }
    return {pool: count for pool, count in counts.items() if count}
