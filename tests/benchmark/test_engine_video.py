"""Videos of the engine's benchmark have the segments that they were asked for, as HieraVid sees them."""

import numpy as np
import pytest
import torch

from pipeline.benchmark.engine.ours import Engine
from pipeline.benchmark.engine.shapes import SHAPES
from pipeline.benchmark.engine.subject import Subject
from pipeline.benchmark.engine.video import make_video
from tests.benchmark.micro_shapes import MICRO, micro_subject


def found(subject, frames, segments):
    step = subject.family.frames_per_step
    shown = [make_video(frames, segments, subject.shape.frame_size, seed, step) for seed in range(3)]
    return set(Engine(subject)(shown, 0.3, 1).segments)


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("name", MICRO)
def test_every_family_finds_the_scenes(name, segments):
    subject = micro_subject(name)
    assert found(subject, 8 * subject.family.frames_per_step, segments) == {segments}


@pytest.mark.parametrize("source", [None, "builtin:tiny"])
def test_the_built_in_shape_finds_the_scenes(source):
    subject = Subject.load(SHAPES["tiny"], source, torch.float32, torch.device("cpu"))
    for segments in (1, 4, 16):
        assert found(subject, 16, segments) == {segments}


def test_videos_differ_by_seed_and_repeat():
    one, other = (make_video(4, 2, (30, 40), seed) for seed in (0, 1))
    assert one.shape == (4, 30, 40, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, make_video(4, 2, (30, 40), 0))
    assert not np.array_equal(one, other)


def test_scenes_begin_where_the_model_takes_a_step():
    video = make_video(12, 3, (30, 40), 0, step=4).astype(float).mean(axis=(1, 2))
    changes = np.abs(np.diff(video, axis=0)).max(axis=1)
    assert sorted(np.argsort(changes)[-2:]) == [3, 7]


def test_more_scenes_than_frames_are_refused():
    with pytest.raises(ValueError, match="8 frames, 2 a step, cannot show 5 segments"):
        make_video(8, 5, (30, 40), step=2)
