"""What a model took in a run that is over: the profile for the night that follows."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.budget.fit import FACTS, fit_profile, timed_row
from pipeline.budget.profile import Profile, check_fits
from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.query_files import Place, find_place, find_results
from pipeline.storage import read_bytes
from pruning import make_pruner

if TYPE_CHECKING:
    from pipeline.engine import VideoLLM

_MOST_FILES = 16  # of a run, which are up to 65,536 rows of a very large one
_VIDEO = ("uri", "frame_times_s")
_TOLD = (
    *("retention_requested", "video_tokens", "prompt_tokens", "output_tokens", "stage_layers", "stage_tokens"),
    *("vision_ms", "prune_ms", "prefill_ms", "generate_ms", "frames"),
)


def profile_of_run(folder: str, config: JobConfig, llm: VideoLLM, threads: int) -> Profile:
    """The profile of what the rows of a run, or of the latest one of an output, took: start-up, neighbours and all.

    It holds for the workers of that run, taken to have `threads` CPU threads each. `llm` is the model that `config`
    names, on whatever device. Raises UserError where nothing was answered, or by another model or in another manner;
    ClusterError where storage is unreachable.
    """
    place = find_place(folder)
    results = find_results(place)
    run_id = max(results)
    where = str(Place(place.output, run_id))
    answered = _answered(results[run_id])
    if not answered:
        raise UserError(f"{where} has no answered row yet: there is nothing to take timings from")
    kinds = Counter(tuple(row[name] for name in FACTS) for row in answered)
    kind = kinds.most_common(1)[0][0]  # others are of an earlier start with another device, for one
    answered = [row for row in answered if tuple(row[name] for name in FACTS) == kind]
    together = Counter(map(_video, answered))
    pruner = make_pruner(config.pruning)
    hosts = len({row["host"] for row in answered})
    profile = fit_profile(
        [timed_row(row, row["frames"], together[_video(row)], llm.shape, pruner) for row in answered],
        dict(zip(FACTS, kind, strict=True)),
        f"{hosts} host{'s' * (hosts != 1)} of run {run_id}",
        threads,
        config.cluster.batch_size,
        len(together),
    )
    check_fits(profile, where, config, llm.info)
    return profile


def _answered(files: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of result files, evenly spread over the run, as many as it takes."""
    rows: list[dict[str, Any]] = []
    columns = ["status", "host", *_VIDEO, *FACTS, *_TOLD]
    for uri in sorted(files)[:: -(-len(files) // _MOST_FILES)]:
        file = pq.ParquetFile(io.BytesIO(read_bytes(uri)))
        if missing := set(columns).difference(file.schema_arrow.names):
            raise UserError(
                f"{uri} was written by another version of this program: it has no {', '.join(sorted(missing))}"
            )
        rows += [row for row in file.read(columns).to_pylist() if row["status"] == "ok"]
    return rows


def _video(row: dict[str, Any]) -> tuple[str, tuple[float, ...]]:
    """What rows share that were decoded and encoded once."""
    return row["uri"], tuple(row["frame_times_s"])
