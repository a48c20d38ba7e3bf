import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.frame_table import FrameTable
from pipeline.video.policies import choose_frames, frames_in_range
from pipeline.video.sampling import Sampling


def table_of(pts, end: int, keys=(0,), per_second: int = 1000) -> FrameTable:
    """Frames that begin at `pts`, in parts of a second; those at the indices `keys` are keyframes."""
    pts = np.asarray(pts, np.int64)
    return FrameTable(
        pts, Fraction(1, per_second), 0, end, np.isin(np.arange(len(pts)), list(keys)), np.arange(len(pts))
    )


def steady(frames: int, gop: int = 10, fps: int = 10) -> FrameTable:
    return table_of(np.arange(frames), frames, range(0, frames, gop), per_second=fps)


def chosen(table: FrameTable, frames: int, policy: str = "uniform", scenes=None, **sampling) -> list[int]:
    return choose_frames(table, Sampling(frames, policy, **sampling), scenes).tolist()


# --- uniform, and the range that all policies share


def test_uniform_spreads_over_the_whole_video_as_the_papers_do():
    assert chosen(steady(100), 4) == [0, 33, 66, 99]
    assert chosen(steady(12), 8) == np.linspace(0, 11, 8).round().astype(int).tolist()


def test_one_uniform_frame_is_the_first():
    assert chosen(steady(9), 1) == [0]


def test_the_end_of_a_range_is_open_and_its_start_closed():
    assert chosen(steady(100), 50, start_s=1.0, end_s=1.5) == [10, 11, 12, 13, 14]


def test_a_range_between_two_frames_sees_the_frame_on_screen():
    for policy in ("uniform", "keyframe", "fps", "scene"):
        assert chosen(steady(100), 4, policy, [0.0], start_s=1.02, end_s=1.06) == [10]


def test_only_one_bound_is_needed():
    assert chosen(steady(20), 50, start_s=1.8) == [18, 19]
    assert chosen(steady(20), 50, end_s=0.2) == [0, 1]


@pytest.mark.parametrize("policy", ["uniform", "keyframe", "fps", "scene"])
def test_a_range_after_the_end_is_empty(policy):
    assert chosen(steady(10), 4, policy, [0.0], start_s=1.0, end_s=2.0) == []
    assert chosen(steady(0), 4, policy, [0.0]) == []


@pytest.mark.parametrize("policy", ["uniform", "keyframe", "scene"])
def test_fewer_frames_than_asked_gives_each_of_them_once(policy):
    assert chosen(steady(3), 16, policy, [0.0, 0.2]) == [0, 1, 2]


def test_a_variable_rate_is_spread_over_frames_not_over_seconds():
    assert chosen(table_of([0, 100, 200, 5000, 9000], 9100), 3) == [0, 2, 4]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"frames": 0}, "0 frames"),
        ({"policy": "fps", "fps": 0.0}, "0.0 frames a second"),
        ({"policy": "fps", "fps": float("nan")}, "nan frames a second"),
        ({"policy": "scene"}, "where scenes begin"),
        ({"policy": "random"}, "'random' is no policy"),
    ],
)
def test_what_cannot_be_asked_for(asked, said):
    with pytest.raises(ValueError, match=said):
        choose_frames(steady(50), Sampling(**{"frames": 8, **asked}))


# --- keyframe


def test_the_nearest_keyframe_within_half_an_interval_is_taken():
    # Uniform picks are 0, 33, 66, 99, 3.3 s apart.
    assert chosen(steady(100, gop=10), 4, "keyframe") == [0, 30, 70, 90]


def test_where_no_keyframe_is_near_the_wanted_frame_is_taken():
    table = table_of(np.arange(100), 100, [0, 40], per_second=10)
    assert chosen(table, 4, "keyframe") == [0, 40, 66, 99]


def test_a_keyframe_exactly_half_an_interval_away_is_near_enough():
    table = table_of(np.arange(41), 41, [5], per_second=10)
    assert chosen(table, 5, "keyframe") == [5, 10, 20, 30, 40]
    assert chosen(table_of(np.arange(41), 41, [15], per_second=10), 5, "keyframe") == [0, 15, 20, 30, 40]


def test_of_two_keyframes_equally_near_the_earlier_is_taken():
    assert chosen(table_of(np.arange(41), 41, [7, 13], per_second=10), 5, "keyframe") == [0, 7, 20, 30, 40]


def test_a_keyframe_outside_the_range_is_not_taken():
    assert chosen(steady(100, gop=20), 3, "keyframe", start_s=2.1, end_s=5.9) == [21, 40, 58]


def test_a_single_frame_has_no_interval_and_stays_exact():
    assert chosen(steady(100, gop=20), 1, "keyframe", start_s=2.5) == [25]


def test_of_two_picks_with_one_nearest_keyframe_the_nearer_gets_it_and_the_other_the_next_or_none():
    # A burst of frames at 5 s: uniform picks 3 and 6 are 0.1 s apart, the interval is 5 s.
    begins = [0, 100, 200, 5000, 5040, 5080, 5100, 5200, 5300, 10000, 12000, 14000, 20000]
    assert chosen(table_of(begins, 20100, keys=[0, 4, 12]), 5, "keyframe") == [0, 4, 6, 9, 12]
    assert chosen(table_of(begins, 20100, keys=[0, 4, 7, 12]), 5, "keyframe") == [0, 4, 7, 9, 12]


def near_keyframes_hold(table: FrameTable, sampling: Sampling) -> None:
    wanted = choose_frames(table, Sampling(sampling.frames, "uniform", start_s=sampling.start_s, end_s=sampling.end_s))
    picks = choose_frames(table, sampling)
    if len(wanted) < 2:
        assert picks.tolist() == wanted.tolist()
        return
    begins = table.times_s[:, 0]
    reach_s = (begins[wanted[-1]] - begins[wanted[0]]) / (len(wanted) - 1) / 2
    assert (np.abs(begins[picks] - begins[wanted]) <= reach_s + 1e-9).all()
    keys = np.flatnonzero(table.is_key)
    assert np.isin(np.setdiff1d(picks, wanted), keys).all()
    free = np.setdiff1d(np.intersect1d(keys, frames_in_range(table, sampling)), picks)
    for pick in np.setdiff1d(picks, keys):
        assert (np.abs(begins[free] - begins[pick]) > reach_s).all(), "a keyframe was near and free"


# --- fps


def test_fps_gives_what_is_on_screen_at_each_tick():
    assert chosen(steady(100), 50, "fps", fps=1.0) == list(range(0, 100, 10))
    assert chosen(steady(20), 50, "fps", fps=4.0) == [0, 2, 5, 7, 10, 12, 15, 17]


def test_fps_counts_from_the_begin_of_the_range():
    assert chosen(steady(100), 50, "fps", fps=1.0, start_s=2.55, end_s=5.0) == [25, 35, 45]


def test_fps_above_the_video_s_own_gives_every_frame_once():
    assert chosen(steady(8), 50, "fps", fps=1000.0) == list(range(8))


def test_fps_equal_to_the_video_s_own_gives_every_frame():
    """Every tick falls on the edge of two frames, where floating point could put it on either side."""
    for rate in (3, 7, 10, 24, 30):
        assert chosen(steady(500, fps=rate), 500, "fps", fps=float(rate)) == list(range(500))
    ntsc = table_of(np.arange(500) * 1001, 500 * 1001, per_second=30000)
    assert chosen(ntsc, 500, "fps", fps=30000 / 1001) == list(range(500))


def test_a_frame_that_stays_is_taken_once_and_the_ticks_in_it_are_gone():
    assert chosen(table_of([0, 1000, 7000], 8000), 50, "fps", fps=1.0) == [0, 1, 2]


def test_fps_above_the_cap_is_spread_evenly():
    assert chosen(steady(100), 4, "fps", fps=1.0) == [0, 30, 60, 90]


def test_a_duration_of_ages_costs_no_more_than_its_frames():
    table = table_of([0, 1, 1 << 40], (1 << 40) + 1, per_second=1)
    assert chosen(table, 8, "fps", fps=1e6) == [0, 1, 2]


# --- scene


def test_every_scene_gets_a_frame_and_long_ones_more():
    # 1 s, 6 s and 3 s at ten frames a second.
    assert chosen(steady(100), 3, "scene", [0.0, 1.0, 7.0]) == [4, 39, 84]
    assert chosen(steady(100), 5, "scene", [0.0, 1.0, 7.0]) == [4, 19, 39, 59, 84]


def test_one_scene_is_looked_at_in_the_middles_of_equal_parts():
    assert chosen(steady(100), 4, "scene", [0.0]) == [12, 37, 62, 87]
    assert chosen(steady(100), 4, "scene", []) == [12, 37, 62, 87]


def test_a_scene_gives_no_more_frames_than_it_has():
    # The second scene is one frame that stays on screen for a minute.
    table = table_of([*range(0, 1000, 100), 1000, *range(61000, 62000, 100)], 62000)
    assert chosen(table, 11, "scene", [0.0, 1.0, 61.0]) == [0, 2, 4, 6, 8, 10, 11, 13, 15, 17, 19]


def test_scenes_without_a_frame_in_the_range_take_none():
    assert chosen(steady(100), 4, "scene", [0.0, 1.0, 2.95, 3.0, 5.0, 9.0], start_s=3.0, end_s=7.0) == [34, 44, 54, 64]


def test_more_scenes_than_frames_stay_spread_over_the_range_and_pick_the_longest_near():
    # In each half one scene of 4 s and two short ones around it.
    assert chosen(steady(100), 2, "scene", [0.0, 0.5, 4.5, 5.5, 9.5]) == [24, 74]


# --- all of them


@given(
    gaps=st.lists(st.sampled_from([1, 10, 33, 40, 5000]), max_size=120),
    gop=st.integers(1, 60),
    frames=st.integers(1, 60),
    policy=st.sampled_from(["uniform", "keyframe", "fps", "scene"]),
    fps=st.sampled_from([0.1, 1.0, 12.5, 1000.0]),
    start=st.none() | st.floats(0, 60),
    length=st.none() | st.floats(0.001, 60),
    scenes=st.lists(st.floats(0, 100), max_size=30),
)
def test_picks_are_ascending_distinct_in_the_range_and_as_many_as_can_be(
    gaps, gop, frames, policy, fps, start, length, scenes
):
    edges = np.concatenate([[0], np.cumsum(gaps)]).astype(int)
    table = table_of(edges[:-1], int(edges[-1]), range(0, len(gaps), gop))
    end = None if length is None else (start or 0.0) + length
    sampling = Sampling(frames, policy, fps, start, end)
    picks = choose_frames(table, sampling, sorted(scenes))
    inside = [
        i
        for i, (begin, until) in enumerate(itertools.pairwise((edges / 1000).round(9)))
        if (start is None or until > start) and (end is None or begin < end)
    ]
    assert picks.dtype == np.int64
    assert (np.diff(picks) > 0).all()
    assert set(picks.tolist()) <= set(inside)
    if policy == "fps":
        assert min(len(inside), 1) <= len(picks) <= frames
    else:
        assert len(picks) == min(frames, len(inside))
    if policy == "keyframe":
        near_keyframes_hold(table, sampling)
