"""The numbers of a run, added up from the result files that it committed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.results import Committed

STAGES = ("fetch_ms", "decode_ms", "vision_ms", "prune_ms", "prefill_ms", "generate_ms")
"""The columns of busy time, in the order in which a video passes the stages."""


@dataclass
class Tally:
    """Sums over the committed shards of a run.

    `videos` counts those with at least one answer, within each shard. `kept_tokens` are video
    tokens times retention, so means over the decoder layers. `retention_sum` runs over `ok` rows.
    `stage_ms` are the busy times of `STAGES`, `decode_cpu_ms` the CPU time behind that of decoding,
    `wait_ms` what rows waited between decoder and model.
    """

    shards: int = 0
    rows: int = 0
    ok: int = 0
    errors: int = 0
    error_codes: Counter[str] = field(default_factory=Counter)
    videos: int = 0
    video_tokens: int = 0
    kept_tokens: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    retention_sum: float = 0.0
    stage_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    decode_cpu_ms: float = 0.0
    wait_ms: float = 0.0
    first_start: datetime | None = None
    last_finish: datetime | None = None

    @property
    def failed_share(self) -> float:
        """Error rows over rows."""
        return self.errors / self.rows if self.rows else 0.0

    def add(self, committed: Committed) -> None:
        """Count a result file."""
        table = committed.table
        answered = table.filter(pc.equal(table["status"], "ok"))
        self.shards += 1
        self.rows += committed.rows
        self.ok += answered.num_rows
        self.errors += committed.errors
        self.error_codes.update(committed.error_codes)
        self.videos += pc.count_distinct(answered["video_id"]).as_py()
        self.video_tokens += _sum(answered["video_tokens"])
        self.kept_tokens += _sum(pc.multiply(answered["video_tokens"], answered["retention_achieved"]))
        self.prompt_tokens += _sum(answered["prompt_tokens"])
        self.output_tokens += _sum(answered["output_tokens"])
        self.retention_sum += _sum(answered["retention_achieved"])
        for stage in STAGES:
            self.stage_ms[stage] += _sum(table[stage])
        self.decode_cpu_ms += _sum(table["decode_cpu_ms"])
        self.wait_ms += _sum(table["wait_ms"])
        self.first_start = _earliest(self.first_start, pc.min(table["started_at"]).as_py())
        self.last_finish = _latest(self.last_finish, pc.max(table["finished_at"]).as_py())


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def _earliest(one: datetime | None, other: datetime | None) -> datetime | None:
    return min((moment for moment in (one, other) if moment is not None), default=None)


def _latest(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((moment for moment in (one, other) if moment is not None), default=None)


@dataclass(frozen=True)
class RunSummary:
    """A run, as `runs/<run_id>/summary.json` holds it.

    `exit_status`: 0 done, 1 more rows failed than the job allows, 2 and 3 it broke off (see
    `run_job`) and `rows` of its `manifest_rows` have a result. `elapsed_s` is the whole run;
    `working_s` the part between the first fetch and the last answer, which `videos_per_min` refers
    to; the rest is starting and stopping. `stage_ms`, `decode_cpu_ms` and `wait_ms` as in `Tally`. A null: nothing
    was answered, so there is no such number.
    """

    run_id: str
    name: str
    task: str
    output: str
    results: str
    fingerprint: str
    model: str
    pruning_method: str
    retention_requested: float
    exit_status: int
    started_at: str
    finished_at: str
    elapsed_s: float
    working_s: float | None
    manifest_rows: int
    shards: int
    rows: int
    ok: int
    errors: int
    error_codes: dict[str, int]
    failed_share: float
    max_failed_share: float
    videos: int
    videos_per_min: float | None
    video_tokens: int
    kept_tokens: int
    prompt_tokens: int
    output_tokens: int
    retention_mean: float | None
    stage_ms: dict[str, float]
    decode_cpu_ms: float
    wait_ms: float

    def to_json(self) -> str:
        """The content of summary.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


def summarize(tally: Tally, started_at: datetime, **facts: Any) -> RunSummary:
    """The summary of a run that began at `started_at` (UTC) and ends now; `facts` are its other fields."""
    finished_at = datetime.now(UTC)
    working_s = None
    if tally.first_start is not None and tally.last_finish is not None:
        working_s = (tally.last_finish - tally.first_start).total_seconds()
    return RunSummary(
        started_at=started_at.isoformat(),
        finished_at=finished_at.isoformat(),
        elapsed_s=round((finished_at - started_at).total_seconds(), 3),
        working_s=working_s,
        shards=tally.shards,
        rows=tally.rows,
        ok=tally.ok,
        errors=tally.errors,
        error_codes=dict(tally.error_codes.most_common()),
        failed_share=tally.failed_share,
        videos=tally.videos,
        videos_per_min=tally.videos / working_s * 60 if tally.videos and working_s else None,
        video_tokens=tally.video_tokens,
        kept_tokens=round(tally.kept_tokens),
        prompt_tokens=tally.prompt_tokens,
        output_tokens=tally.output_tokens,
        retention_mean=tally.retention_sum / tally.ok if tally.ok else None,
        stage_ms=tally.stage_ms,
        decode_cpu_ms=tally.decode_cpu_ms,
        wait_ms=tally.wait_ms,
        **facts,
    )
