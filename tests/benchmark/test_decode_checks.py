"""What the rows of the reading benchmark say about its aims."""

from dataclasses import fields, replace

import pytest

from pipeline.benchmark.decode.checks import check_clips
from pipeline.benchmark.decode.run import ClipRows, Row
from pipeline.benchmark.decode.timeline import Timeline

COLUMNS = "clip, duration_s, codec, system, policy, frames, cpu_s, wall_s, peak_mb, bytes_read, max_time_error_s"
TIMELINE = Timeline("h264", 9300, 310.0, 9.0, [10.0 * i for i in range(32)])


def row(system, policy, cpu_s, error=0.0):
    return Row("clip", 310.0, "h264", system, policy, 32, cpu_s, cpu_s, 100.0, 1000, error)


ROWS = [
    row("ours", "uniform", 2.1, error=0.0002),
    row("ours", "keyframe", 0.3, error=4.0),
    row("ours", "fps", 9.0, error=None),
    row("ours, isolated", "uniform", 2.4),
    row("decord", "uniform", 3.6),
    row("decord", "keyframe", 0.1, error=9.0),
    row("pyav", "uniform", 2.0),
    row("torchcodec", "uniform", 3.0),
]
CLIP = ClipRows("long", TIMELINE, ROWS, [])


def values(*clips):
    return {check.name: (round(check.value, 3), check.bound, check.passed) for check in check_clips(clips)}


def test_the_columns_are_those_that_readers_expect():
    assert ", ".join(field.name for field in fields(Row)) == COLUMNS


def test_each_clip_is_compared_with_the_best_there():
    other = ClipRows("other", TIMELINE, [row("ours", "uniform", 1.4), row("decord", "uniform", 1.0)], [])
    found = values(CLIP, other)
    cpu = "exact frames, CPU time of ours / the best of the others"
    assert found[f"{cpu}, geometric mean of 2 clips"] == (1.212, 1.1, False)  # the root of 1.05 × 1.4
    assert found[f"{cpu}, worst (other)"] == (1.4, 1.3, False)
    isolated = "exact frames, CPU time of ours, isolated / the best of the others"
    assert found[f"{isolated}, worst (long)"] == (1.2, 1.3, True)
    assert found["keyframes, CPU time of decord's exact frames / ours (long)"] == (12.0, 10.0, True)
    assert found["exact frames, furthest of ours from its time (long)"] == (0.2, 1.0, True)
    assert found["keyframes, furthest of ours from its time, of an interval (long)"] == (0.4, 0.5, True)
    assert len(found) == 7


@pytest.mark.parametrize("change", [{"duration_s": 299.0}, {"max_gap_s": 10.5}])
def test_keyframes_are_judged_on_long_clips_that_have_enough_of_them(change):
    found = values(replace(CLIP, timeline=replace(TIMELINE, **change)))
    assert not [name for name in found if name.startswith("keyframes, CPU")]


def test_aims_that_nothing_was_measured_for_are_left_out():
    assert check_clips([]) == []
    assert check_clips([ClipRows("broken", None, [], ["broken: no frame"])]) == []
    assert values(ClipRows("ours alone", TIMELINE, [row("ours", "fps", 1.0, None)], [])) == {}
