"""The numbers of a run, added up from the result files that it committed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.results import Committed

STAGES = ("fetch_ms", "decode_ms", "vision_ms", "prune_ms", "prefill_ms", "generate_ms")
"""The columns of busy time, in the order in which a video passes the stages."""
_SUMMED = ("shards", "rows", "ok", "errors", "videos", "video_tokens", "kept_tokens", "prompt_tokens", "output_tokens")
_SUMMED += ("retention_sum", "decode_cpu_ms", "wait_ms")


@dataclass
class Tally:
    """Sums over committed shards.

    `videos` counts those with at least one answer, within each shard. `kept_tokens` are video
    tokens times retention, so means over the decoder layers. `retention_sum` runs over `ok` rows.
    `stage_ms` are the busy times of `STAGES`, `decode_cpu_ms` the CPU time behind that of decoding,
    `wait_ms` what rows waited between decoder and model. `spans` are the times in which some row was
    in work: int64 [spans, 2], microseconds, in order and apart.
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
    spans: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))

    @property
    def failed_share(self) -> float:
        """Error rows over rows."""
        return self.errors / self.rows if self.rows else 0.0

    @property
    def working_s(self) -> float | None:
        """How long some row was in work, None where none ever was."""
        return float(np.diff(self.spans).sum() / 1e6) if len(self.spans) else None


def count_file(committed: Committed) -> Tally:
    """The numbers of one result file."""
    table = committed.table
    answered = table.filter(pc.equal(table["status"], "ok"))
    timed = table.filter(pc.and_(pc.is_valid(table["started_at"]), pc.is_valid(table["finished_at"])))
    times = [timed[name].cast(pa.int64()).to_numpy() for name in ("started_at", "finished_at")]
    return Tally(
        shards=1,
        rows=committed.rows,
        ok=answered.num_rows,
        errors=committed.errors,
        error_codes=Counter(committed.error_codes),
        videos=pc.count_distinct(answered["video_id"]).as_py(),
        video_tokens=_sum(answered["video_tokens"]),
        kept_tokens=_sum(pc.multiply(answered["video_tokens"], answered["retention_achieved"])),
        prompt_tokens=_sum(answered["prompt_tokens"]),
        output_tokens=_sum(answered["output_tokens"]),
        retention_sum=_sum(answered["retention_achieved"]),
        stage_ms={stage: _sum(table[stage]) for stage in STAGES},
        decode_cpu_ms=_sum(table["decode_cpu_ms"]),
        wait_ms=_sum(table["wait_ms"]),
        spans=_joined(np.stack(times, axis=1)),
    )


def add_up(tallies: Iterable[Tally]) -> Tally:
    """The numbers of several files, or runs, together."""
    total = Tally()
    spans = [total.spans]
    for one in tallies:
        for name in _SUMMED:
            setattr(total, name, getattr(total, name) + getattr(one, name))
        total.error_codes.update(one.error_codes)
        for stage in STAGES:
            total.stage_ms[stage] += one.stage_ms[stage]
        spans.append(one.spans)
    total.spans = _joined(np.concatenate(spans))
    return total


def _sum(column: pa.ChunkedArray) -> Any:
    return pc.sum(column).as_py() or 0


def _joined(spans: np.ndarray) -> np.ndarray:
    """Spans [n, 2] in any order as those times that are in at least one of them, in order."""
    if not len(spans):
        return spans
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    until = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.r_[True, spans[1:, 0] > until[:-1]])
    return np.stack([spans[first, 0], until[np.r_[first[1:] - 1, len(spans) - 1]]], axis=1)


@dataclass(frozen=True)
class RunSummary:
    """A run, as `runs/<run_id>/summary.json` holds it: it always agrees with a count over the run's result files.

    `exit_status`: null while the run is not complete and, as far as it could be told, going on; 0
    done, 1 more rows failed than the job allows, 2 and 3 it broke off (see `run_job`), 130 it was
    interrupted; after 1, 2, 3 and 130 `rows` of its `manifest_rows` have a result. `started_at` is
    when it first started. `elapsed_s` adds up all starts; `working_s` is the part in which some row
    was between fetch and answer, which `videos_per_min` refers to; the rest is starting and
    stopping. `retention_requested` is null where the `budget`, the one key that was given, is another amount.
    `stage_ms`, `decode_cpu_ms` and `wait_ms` as in `Tally`. Any other null: nothing was answered, so there is no such
    number.
    """

    run_id: str
    name: str
    task: str
    output: str
    results: str
    fingerprint: str
    model: str
    pruning_method: str
    retention_requested: float | None
    exit_status: int | None
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
    budget: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The content of summary.json."""
        return json.dumps(asdict(self), indent=2) + "\n"


def summarize(tally: Tally, started_at: datetime, elapsed_s: float, **facts: Any) -> RunSummary:
    """The summary of a run that began at `started_at` (UTC) and took `elapsed_s`; `facts` are its other fields."""
    working_s = tally.working_s
    return RunSummary(
        started_at=started_at.isoformat(),
        finished_at=datetime.now(UTC).isoformat(),
        elapsed_s=round(elapsed_s, 3),
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


def _is_needed(one: Field[Any]) -> bool:
    """Whether every version of the file has it."""
    return one.default is MISSING and one.default_factory is MISSING


def parse_summary(data: bytes) -> RunSummary | None:
    """What `to_json` wrote; None for anything else."""
    try:
        told = json.loads(data)
        return RunSummary(
            **{one.name: told[one.name] for one in fields(RunSummary) if one.name in told or _is_needed(one)}
        )
    except (ValueError, TypeError, KeyError):
        return None
