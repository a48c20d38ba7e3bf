"""Rendered clips are real videos that show what their manifests say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.tiny.clips import write_dataset, write_video
from pipeline.tiny.draw import draw_clip
from pipeline.tiny.scores import score_answers, score_captions
from pipeline.tiny.world import SLOTS, VALIDATION_SEEDS, make_clip
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling


def test_sixteen_uniform_frames_of_the_file_are_the_sixteen_slots(tmp_path: Path) -> None:
    seed = next(s for s in VALIDATION_SEEDS if make_clip(s).duration_s < 6)
    clip = make_clip(seed)
    write_video(clip, tmp_path / "clip.mp4")
    video = decode_frames(tmp_path / "clip.mp4", Sampling(SLOTS, "uniform"))
    assert video.info.codec == "h264"
    assert video.frames.shape == (SLOTS, clip.height, clip.width, 3)
    assert video.info.duration_s == pytest.approx(clip.duration_s, abs=0.2)
    drawn = np.stack(list(draw_clip(clip, range(SLOTS), clip.width, clip.height)))
    assert np.abs(video.frames.astype(int) - drawn).mean() < 4
    shown = {(o.colour, o.shape) for s in clip.scenes for o in s.objects}
    assert shown


def test_datasets_reuse_cached_videos_and_carry_references(tmp_path: Path) -> None:
    seeds = [s for s in VALIDATION_SEEDS[:400] if make_clip(s).duration_s < 4.5][:2]
    cache = tmp_path / "cache"
    write_dataset(seeds, tmp_path / "one", cache, workers=1)
    stamps = {p.name: p.stat().st_mtime_ns for p in cache.iterdir()}
    write_dataset(seeds, tmp_path / "two", cache, workers=1)
    assert stamps == {p.name: p.stat().st_mtime_ns for p in cache.iterdir()}
    assert len(stamps) == 2
    rows = [json.loads(line) for line in (tmp_path / "two" / "qa.jsonl").read_text().splitlines()]
    assert all((tmp_path / "two" / row["uri"]).exists() and row["reference"] for row in rows)
    assert len(rows) == 10


def test_scores_count_errors_as_wrong() -> None:
    rows = [
        {"kind": "colour", "answer": "red", "reference": "red"},
        {"kind": "colour", "answer": None, "reference": "red"},
        {"kind": "count", "answer": "two", "reference": "one"},
        {"kind": "count", "answer": "one", "reference": "one"},
    ]
    assert score_answers(rows) == {"colour": 0.5, "count": 0.5, "all": 0.5}
    captions = [
        {"answer": "a red circle flashes.", "reference": "a red circle flashes."},
        {"answer": None, "reference": "a"},
    ]
    assert score_captions(captions[:1]) == 1.0
    assert score_captions([captions[0], {"answer": None, "reference": "a red circle flashes."}]) == 0.5
