"""Renders clips of the procedural world to real MP4 files, with manifests of captions and questions.

`python -m pipeline.tiny.clips --split validation --count 24 --out out/demo` writes `videos/*.mp4`, `caption.jsonl` and
`qa.jsonl`; with `--cache` videos are taken from there when a former call left them. The manifests carry the truth in a
column `reference`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from pipeline.tiny.draw import draw_clip
from pipeline.tiny.language import Question, caption, sample_questions
from pipeline.tiny.world import SEED_RANGES, Clip, make_clip

QUESTIONS_PER_CLIP = 5


def write_video(clip: Clip, path: Path) -> None:
    """Encode a clip as H.264 in an MP4 with the encoder's ordinary settings. Written whole or not at all."""
    count = max(2, round(clip.duration_s * clip.fps))
    slots = np.arange(count) * (clip.slots - 1) / (count - 1)
    partial = path.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", rate=clip.fps, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
        for picture in draw_clip(clip, slots.tolist(), clip.width, clip.height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    partial.replace(path)


def clip_questions(clip: Clip, count: int = QUESTIONS_PER_CLIP) -> list[Question]:
    """The questions that a clip is asked wherever it is used: fixed by its seed."""
    return sample_questions(clip.scenes, np.random.default_rng([clip.seed, 31]), count)


def _render(seed: int, folder: Path, cache: Path | None) -> str:
    name = f"{seed}.mp4"
    if cache is None:
        write_video(make_clip(seed), folder / name)
    else:
        if not (cache / name).exists():
            write_video(make_clip(seed), cache / name)
        shutil.copyfile(cache / name, folder / name)
    return name


def write_dataset(seeds: Sequence[int], out: Path, cache: Path | None = None, workers: int = 2) -> None:
    """Videos of `seeds` under `out`/videos and the two manifests beside them; uris are relative to the manifest."""
    folder = out / "videos"
    for path in (folder, cache):
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        names = pool.starmap(_render, [(seed, folder, cache) for seed in seeds], chunksize=1)
    captions, questions = [], []
    for seed, name in zip(seeds, names, strict=True):
        clip = make_clip(seed)
        row = {"uri": f"videos/{name}", "video_id": str(seed)}
        captions.append({**row, "reference": caption(clip.scenes)})
        for q in clip_questions(clip):
            chosen = {"options": list(q.options)} if q.options else {}
            questions.append({**row, "question": q.text, **chosen, "kind": q.kind, "reference": q.answer})
    for name, rows in (("caption", captions), ("qa", questions)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=sorted(SEED_RANGES), default="validation")
    parser.add_argument("--first", type=int, default=0, help="index of the first clip in the split")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="folder of videos to reuse and add to")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    seeds = SEED_RANGES[args.split][args.first : args.first + args.count]
    write_dataset(seeds, args.out, args.cache, args.workers)
    print(f"{len(seeds)} clips of the {args.split} split in {args.out}")


if __name__ == "__main__":
    main()
