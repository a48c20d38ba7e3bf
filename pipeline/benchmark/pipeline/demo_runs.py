"""Runs of the built-in model over generated clips on two cores, bound by one stage or the other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from pipeline.benchmark.pipeline.alone import Alone, stage_rate
from pipeline.benchmark.pipeline.driver import Order, run
from pipeline.benchmark.pipeline.rate import finished_s, middle_rate
from pipeline.benchmark.pipeline.row import Row
from pipeline.tiny.clips import write_dataset, write_video
from pipeline.tiny.world import SEED_RANGES, make_clip

_CORES = 2
# One actor of each stage: decoding has one of the cores, the model the other, and what Ray does takes from both.
_ACTORS = ("cluster.decoders=1", "cluster.answerers=1", "cluster.batch_size=8", "model.device=cpu")
_LARGE = (1920, 1080)  # decoding such a clip takes several times as long as answering it
_LARGE_CLIPS = 12  # more would take minutes to make: each comes again under other names, and is decoded again


@dataclass(frozen=True)
class Work:
    """What is asked of clips, large ones or as they are, as settings of a caption job."""

    setting: str
    large: bool
    given: tuple[str, ...]


WORKS = (
    Work(
        "demo, decode-bound",
        True,
        ("video.policy=uniform", "video.frames=4", "budget.retention=0.3", "generation.max_new_tokens=1"),
    ),
    Work(
        "demo, model-bound",
        False,
        ("video.policy=keyframe", "budget.retention=1.0", "pruning.method=none", "generation.max_new_tokens=128"),
    ),
)


def make_manifest(work: Work, count: int, cache: Path) -> Path:
    """A manifest of `count` validation clips, below `cache`, where those of an earlier call are used again."""
    folder = cache / f"{'large' if work.large else 'plain'}-{count}"
    seeds = SEED_RANGES["validation"][:count]
    if not work.large:
        write_dataset(seeds, folder, cache=cache / "clips")
        return folder / "caption.jsonl"
    names = _large_clips(seeds[:_LARGE_CLIPS], cache / "large-clips")
    folder.mkdir(parents=True, exist_ok=True)
    uris = [folder / f"{number}.mp4" for number in range(count)]
    for number, uri in enumerate(uris):
        uri.unlink(missing_ok=True)
        uri.hardlink_to(names[number % len(names)])
    manifest = folder / "caption.jsonl"
    manifest.write_text("".join(json.dumps({"uri": uri.name}) + "\n" for uri in uris))
    return manifest


def _large_clips(seeds: Sequence[int], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.mp4" for seed in seeds]
    missing = [(seed, path) for seed, path in zip(seeds, paths, strict=True) if not path.exists()]
    with ProcessPoolExecutor(_CORES, mp_context=get_context("spawn")) as workers:
        for rendered in [workers.submit(_render, seed, _LARGE, path) for seed, path in missing]:
            rendered.result()
    return paths


def _render(seed: int, size: tuple[int, int], path: Path) -> None:
    width, height = size
    write_video(replace(make_clip(seed), width=width, height=height), path)


def measure_work(work: Work, rows: int, manifest: Path, folder: Path) -> Row:
    """One run in a new `folder`, and right after it both of its stages alone."""
    folder.mkdir(parents=True)
    given = (f"manifest={manifest}", f"output={folder / 'out'}", *_ACTORS, *work.given)
    ran = run(Order("caption", given, str(folder / "told.json"), cores=_CORES))
    rate = middle_rate(finished_s(str(folder / "out")))
    alone = [stage_rate(Alone(stage, "caption", given, ran.run_id, _CORES)) for stage in ("decode", "answer")]
    return Row.measured(work.setting, rows, rate, min(alone), ran.peak_mb)
