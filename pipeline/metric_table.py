"""The names of all metrics, as they are scraped. Documentation, dashboards and tests read them here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STAGE_COLUMNS = {
    "fetch": "fetch_ms",
    "decode": "decode_ms",
    "wait": "wait_ms",
    "vision": "vision_ms",
    "prune": "prune_ms",
    "prefill": "prefill_ms",
    "generate": "generate_ms",
    "total": "total_ms",
}
"""The values of the label `stage`, and the column of a result row that each is taken from."""

BUSY_STAGES = tuple(stage for stage in STAGE_COLUMNS if stage not in ("wait", "total"))
"""Those in which something works. Their times are shares whose sum over rows is the busy time."""

BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Upper bounds of the buckets of stage times, in seconds."""

_OF_A_JOB = ("job_name",)


@dataclass(frozen=True)
class Metric:
    """One metric. `name` is the scraped one: Ray puts ray_ before every name, and _total behind that of a counter."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    unit: str
    meaning: str

    @property
    def given_name(self) -> str:
        """What Ray is told, so that `name` comes out."""
        return self.name.removeprefix("ray_").removesuffix("_total")


ROWS = Metric(
    "ray_hieravid_rows_total",
    "counter",
    (*_OF_A_JOB, "task", "status", "error_stage", "error_code"),
    "rows",
    "rows that have their result; stage and code are empty where status is ok",
)
ROWS_LEFT = Metric("ray_hieravid_rows_left", "gauge", _OF_A_JOB, "rows", "rows of this start that are still to come")
SHARDS = Metric("ray_hieravid_shards_committed_total", "counter", _OF_A_JOB, "files", "result files committed")
STAGE_SECONDS = Metric(
    "ray_hieravid_stage_seconds",
    "histogram",
    (*_OF_A_JOB, "stage"),
    "seconds",
    "what a row took in a stage; of fetch and decode its share of the video's; wait lies between decoder and model; "
    "total is from fetch to answer",
)
BUSY_SECONDS = Metric(
    "ray_hieravid_busy_seconds_total",
    "counter",
    (*_OF_A_JOB, "stage"),
    "seconds",
    "busy time of a stage, all workers together; without wait and total",
)
BUSY_SHARE = Metric(
    "ray_hieravid_busy_share",
    "gauge",
    (*_OF_A_JOB, "pool"),
    "0 to 1",
    "busy time of the pool's workers over the last two minutes, by those that live now",
)
WORKERS = Metric("ray_hieravid_workers", "gauge", (*_OF_A_JOB, "pool"), "processes", "workers of the pool that live")
VIDEO_TOKENS = Metric(
    "ray_hieravid_video_tokens_total", "counter", _OF_A_JOB, "tokens", "video tokens before any pruning"
)
KEPT_TOKENS = Metric(
    "ray_hieravid_kept_tokens_total", "counter", _OF_A_JOB, "tokens", "video tokens kept, mean over the decoder layers"
)
OUTPUT_TOKENS = Metric("ray_hieravid_output_tokens_total", "counter", _OF_A_JOB, "tokens", "tokens of the answers")
FETCHED_BYTES = Metric(
    "ray_hieravid_fetched_bytes_total",
    "counter",
    _OF_A_JOB,
    "bytes",
    "transferred for videos; of one on a local disk its size",
)
ANSWERER_REQUESTS = Metric(
    "ray_hieravid_answerer_requests",
    "gauge",
    ("state",),
    "requests",
    "at one answerer, told apart by WorkerId: waiting for the model, or running on it",
)

METRICS = (
    ROWS,
    ROWS_LEFT,
    SHARDS,
    STAGE_SECONDS,
    BUSY_SECONDS,
    BUSY_SHARE,
    WORKERS,
    VIDEO_TOKENS,
    KEPT_TOKENS,
    OUTPUT_TOKENS,
    FETCHED_BYTES,
    ANSWERER_REQUESTS,
)
"""Every metric of ours."""

LABEL_VALUES: dict[str, str] = {
    "job_name": "the job's `name`",
    "task": "caption, qa",
    "status": "ok, error",
    "error_stage": "manifest, fetch, decode, encode, generate, or empty",
    "error_code": "the documented error codes, or empty",
    "stage": ", ".join(STAGE_COLUMNS),
    "pool": "decoders, answerers",
    "state": "waiting, running",
}
"""What each label can be: there is no label whose values grow with the archive."""
