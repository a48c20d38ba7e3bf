"""Clips of the reading benchmark: every frame carries its number, keyframes and times are those of the recipe."""

import itertools
from dataclasses import replace

import av
import numpy as np
import pytest

from pipeline.benchmark.decode.clips import FPS, RECIPES, WARM_UP, make_clip
from pipeline.benchmark.decode.pictures import MAX_FRAMES, draw_pictures, read_number
from pipeline.benchmark.decode.timeline import evenly, read_timeline

SMALL = {"width": 128, "height": 96, "gap": 10, "part": 30, "duration_s": 3}
ENCODERS = {recipe.encoder: recipe for recipe in reversed(RECIPES)}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_clip_repeats_its_part_without_a_seam(encoder, tmp_path):
    clip = make_clip(replace(ENCODERS[encoder], **SMALL), tmp_path)
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    assert [read_number(frame.to_ndarray(format="rgb24")) for frame in frames] == [*range(30)] * 3
    assert [frame.time for frame in frames] == pytest.approx([i / FPS for i in range(90)], abs=1e-3)
    assert [i for i, frame in enumerate(frames) if frame.key_frame] == [*range(0, 90, 10)]
    timeline = read_timeline(clip, 7)
    assert (timeline.codec, timeline.frames) == (ENCODERS[encoder].codec, 90)
    assert timeline.duration_s == pytest.approx(3, abs=2e-3)
    assert timeline.max_gap_s == pytest.approx(1 / 3, abs=2e-3)
    assert timeline.wanted_s == pytest.approx([i / FPS for i in evenly(90, 7)], abs=1e-3)
    assert timeline.interval_s == pytest.approx(89 / FPS / 6, abs=1e-3)


def test_a_clip_is_made_once_and_whole(tmp_path):
    clip = make_clip(WARM_UP, tmp_path)
    made = clip.stat().st_mtime_ns
    assert make_clip(WARM_UP, tmp_path) == clip
    assert clip.stat().st_mtime_ns == made
    assert make_clip(replace(WARM_UP, options={"preset": "superfast"}), tmp_path) != clip
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(("part", "unfinished"))]


def test_the_clips_cover_what_archives_hold():
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    assert {recipe.codec for recipe in RECIPES} == {"h264", "hevc", "av1", "vp9"}
    assert {recipe.height for recipe in RECIPES} == {720, 1080, 2160}
    for codec in ("h264", "hevc", "av1", "vp9"):
        gaps = [recipe.gap for recipe in RECIPES if recipe.codec == codec]
        assert max(gaps) >= 4 * min(gaps)
    assert max(recipe.duration_s for recipe in RECIPES) == 3600


def test_a_part_must_fill_the_clip():
    with pytest.raises(ValueError, match="1 s are no multiple of 20 frames"):
        replace(WARM_UP, part=20)


@pytest.mark.parametrize("size", [(64, 48), (322, 182)])
def test_pictures_move_and_show_their_number(size):
    pictures = list(draw_pictures(130, *size))
    assert pictures[0].shape == (size[1] * 3 // 2, size[0])
    frames = [av.VideoFrame.from_ndarray(picture, format="yuv420p").to_ndarray(format="rgb24") for picture in pictures]
    assert [read_number(frame) for frame in frames] == list(range(130))
    changes = [np.abs(a[12:].astype(int) - b[12:]).mean() for a, b in itertools.pairwise(frames)]
    assert min(changes) > 1
    assert int(np.argmax(changes)) == 119  # the cut


@pytest.mark.parametrize("sizes", [(1, 63, 48), (1, 64, 47), (1, 18, 48), (MAX_FRAMES + 1, 64, 48)])
def test_pictures_that_cannot_carry_their_number_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot draw"):
        next(draw_pictures(*sizes))


def test_a_file_without_video_has_no_timeline(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 50)
    with pytest.raises((ValueError, av.FFmpegError)):
        read_timeline(text, 4)
