"""A job before it runs: counted, sampled, timed, and its retention chosen."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.budget.accuracy import expected_share
from pipeline.budget.census import Census, take_census
from pipeline.budget.choose import choose
from pipeline.budget.cost import CostModel, Estimate, PoolSizes, VideoCosts
from pipeline.budget.history import profile_of_run
from pipeline.budget.profile import Profile, load_profile
from pipeline.budget.sample import ReadSample, VideoSample, read_sample
from pipeline.budget.workload import Workload, row_kinds
from pipeline.config import BudgetConfig, JobConfig
from pipeline.errors import UserError
from pipeline.model_load import find_model, load_engine, model_error
from pipeline.resolve import resolve_method
from pipeline.storage import is_folder
from pruning import make_pruner

if TYPE_CHECKING:
    from pipeline.engine import VideoLLM

SAMPLED_VIDEOS = 32
TIMED_VIDEOS = 12  # of the sampled ones are answered, at several retentions each
Told = Callable[[str], None]
Allow = Callable[[PoolSizes], tuple[BudgetConfig, bool]]
"""What may be spent, and whether a job that takes more is refused."""


@dataclass(frozen=True)
class Forecast:
    """What a job will come to. `chosen` is at the retention of its budget, `unpruned` at 1."""

    config: JobConfig
    model: str
    census: Census
    sample: VideoSample
    costs: CostModel
    chosen: Estimate
    unpruned: Estimate
    accuracy_share: float | None

    @property
    def profile(self) -> Profile:
        """The device's."""
        return self.costs.profile

    def to_json(self) -> dict[str, Any]:
        """For scripts: numbers in the units that their names tell."""
        rates = self.costs.pools
        return {
            "task": self.config.task,
            "name": self.config.name,
            "budget": self.config.budget.model_dump(mode="json"),
            "model": self.model,
            "rows": self.census.rows,
            "refused": self.census.refused,
            "videos": self.census.videos,
            "sampled_videos": self.sample.asked,
            "sample_failures": self.sample.failures,
            "retention": self.chosen.retention,
            "accuracy_share": self.accuracy_share,
            "chosen": _numbers(self.chosen),
            "unpruned": _numbers(self.unpruned),
            "hours_are": "GPU-hours" if rates.gpus else "hours of the answerers, which have no GPU",
            "pools": {"decoders": rates.decoders, "answerers": rates.answerers, "gpus_per_answerer": rates.gpus},
            "profile": {field.name: getattr(self.profile, field.name) for field in fields(self.profile)},
        }


def forecast(
    config: JobConfig,
    videos: int = SAMPLED_VIDEOS,
    profile: str | None = None,
    told: Told = print,
    rows: int | None = None,
    allow: Allow | None = None,
) -> Forecast:
    """Count the manifest, read `videos` of its videos, time some here (or take a `profile`), and choose.

    A profile is one that was saved, or what an earlier run took: its folder, or an output, whose latest run counts.
    Nothing is written and no cluster is needed. With `rows` so many of the manifest's are to be answered, and `allow`
    is the budget for these, given the job's workers. Raises UserError where something of the job must be changed: its
    manifest, its model, a budget out of reach, a sample of which nothing can be read; ClusterError where storage is
    unreachable.
    """
    told(f"reading the manifest {config.manifest}")
    census = take_census(config, videos)
    if not census.sample:
        raise UserError(f"{config.manifest}: all of its {census.rows} rows are refused ({_codes(census.refusals)})")
    llm, resolved = _load(config, told)
    told(f"reading {len(census.sample)} of {census.videos} videos")
    info = llm.info
    keep = 0 if profile else TIMED_VIDEOS
    sample = read_sample(resolved, census.sample, info.default_frames, info.frame_size, keep)
    if not sample.videos:
        raise UserError(f"none of {sample.asked} sampled videos can be read ({_codes(sample.failures)})")
    if profile and is_folder(profile):
        timed = profile_of_run(profile, resolved, llm, _threads(config))
    elif profile:
        timed = load_profile(profile, config, info)
    else:
        from pipeline.budget.measure import measure

        told(f"timing {min(keep, len(sample.videos))} of them on this machine's {info.device}")
        timed = measure(llm, resolved, sample.videos)
    costs = cost_model(resolved, census, sample, llm, timed)
    if rows is not None:
        costs = costs.for_rows(rows * sample.readable_share)
    budget, may_refuse = allow(costs.pools) if allow else (config.budget, True)
    choice = choose(budget, costs.at, costs.workload.least_retention(), may_refuse)
    share = expected_share(config, info.model_hash, choice.retention)
    return Forecast(resolved, info.name, census, sample, costs, choice.estimate, costs.at(1.0), share)


def cost_model(config: JobConfig, census: Census, sample: VideoSample, llm: VideoLLM, profile: Profile) -> CostModel:
    """The sample blown up to the manifest: videos that cannot be read, and their rows, count as in the sample."""
    kinds = row_kinds(sample.videos, llm.grid, llm.prompt_tokens, config.generation.max_new_tokens)
    cluster = config.cluster
    gpus = cluster.gpus_per_answerer
    if gpus == "auto":
        gpus = 1.0 if profile.device == "cuda" else 0.0
    return CostModel(
        videos=census.videos * sample.readable_share,
        rows=(census.rows - census.refused) * sample.readable_share,
        workload=Workload(kinds, llm.shape, make_pruner(config.pruning)),
        each=_each(sample.videos),
        profile=profile,
        pools=PoolSizes(_most(cluster.decoders), _most(cluster.answerers), gpus, profile.threads),
        usd_per_gpu_hour=config.budget.usd_per_gpu_hour,
    )


def _each(videos: list[ReadSample]) -> VideoCosts:
    return VideoCosts(
        frames=fmean(video.frame_count for video in videos),
        fetch_s=fmean(video.fetch_s for video in videos),
        decode_s=fmean(video.decode_s for video in videos),
        decode_cpu_s=fmean(video.decode_cpu_s for video in videos),
        fetched_bytes=fmean(video.fetched_bytes for video in videos),
    )


def _load(config: JobConfig, told: Told) -> tuple[VideoLLM, JobConfig]:
    """The model on this machine, with as many threads as an answerer of a run here would have."""
    from pipeline.engine import ModelError

    told(f"loading {config.model.source}")
    model = find_model(config.model, lambda progress: None)
    device = config.model.device
    if device == "auto" and config.cluster.gpus_per_answerer == 0:
        device = "cpu"
    try:
        return load_engine(model, device, _threads(config)), resolve_method(config, model.info)
    except ModelError as error:
        raise model_error(str(error)) from error


def _threads(config: JobConfig) -> int:
    """As `run_cluster.choose_pools` gives an answerer on a cluster of this one machine."""
    return max(1, (len(os.sched_getaffinity(0)) - 1) // _most(config.cluster.answerers))


def _most(actors: int | tuple[int, int]) -> int:
    """How many workers a pool may come to have: an archive is large enough for all of them to be started."""
    return actors if isinstance(actors, int) else actors[1]


def _numbers(estimate: Estimate) -> dict[str, Any]:
    tokens = estimate.tokens
    return {
        "retention": estimate.retention,
        "video_tokens": tokens.video,
        "kept_tokens": tokens.kept,
        "prompt_tokens": tokens.text,
        "output_tokens": estimate.output_tokens,
        "stages": [
            {"layer": layer, "video_tokens": tokens.stages[layer], "flops": tokens.stage_flops[layer]}
            for layer in sorted(tokens.stages)
        ],
        "prefill_flops": tokens.flops,
        "flops_ratio": estimate.flops_ratio,
        "busy_s": dict(estimate.busy_s),
        "pool_s": dict(estimate.pool_s),
        "bottleneck": estimate.bottleneck,
        "model_hours": estimate.model_hours,
        "cpu_hours": estimate.cpu_hours,
        "gpu_hours": estimate.gpu_hours,
        "duration_s": estimate.duration_s,
        "bytes": estimate.bytes,
        "usd": estimate.usd,
    }


def _codes(counts: dict[str, int]) -> str:
    return ", ".join(f"{code} {count}" for code, count in counts.items())
