import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.video.timestamps import uniform_indices


def steady(frames: int, fps: float = 10.0) -> np.ndarray:
    begins = np.arange(frames) / fps
    return np.stack([begins, begins + 1 / fps], axis=1).round(6)


def test_spreads_over_the_whole_video_as_the_papers_do():
    chosen = uniform_indices(steady(100), 4)
    assert chosen.tolist() == [0, 33, 66, 99]


def test_rounds_to_the_nearest_frame():
    assert uniform_indices(steady(12), 8).tolist() == np.linspace(0, 11, 8).round().astype(int).tolist()


def test_one_frame_is_the_first():
    assert uniform_indices(steady(9), 1).tolist() == [0]


def test_fewer_frames_than_asked_gives_each_of_them_once():
    assert uniform_indices(steady(3), 16).tolist() == [0, 1, 2]


def test_the_end_of_a_range_is_open_and_its_start_closed():
    assert uniform_indices(steady(100), 50, start_s=1.0, end_s=1.5).tolist() == [10, 11, 12, 13, 14]


def test_a_range_between_two_frames_sees_the_frame_on_screen():
    assert uniform_indices(steady(100), 4, start_s=1.02, end_s=1.06).tolist() == [10]


def test_only_one_bound_is_needed():
    assert uniform_indices(steady(20), 50, start_s=1.8).tolist() == [18, 19]
    assert uniform_indices(steady(20), 50, end_s=0.2).tolist() == [0, 1]


def test_a_range_after_the_end_is_empty():
    assert len(uniform_indices(steady(10), 4, start_s=1.0, end_s=2.0)) == 0


def test_a_variable_rate_is_spread_over_frames_not_over_seconds():
    begins = np.array([0.0, 0.1, 0.2, 5.0, 9.0])
    times = np.stack([begins, np.append(begins[1:], 9.1)], axis=1)
    assert uniform_indices(times, 3).tolist() == [0, 2, 4]


def test_no_frames_cannot_be_asked_for():
    with pytest.raises(ValueError, match="0 frames"):
        uniform_indices(steady(5), 0)


@given(frames=st.integers(0, 3000), count=st.integers(1, 300), start=st.floats(0, 400), length=st.floats(0.001, 400))
def test_frames_are_distinct_ascending_inside_the_range_and_as_many_as_there_are(frames, count, start, length):
    times = steady(frames)
    chosen = uniform_indices(times, count, start, start + length)
    inside = [i for i in range(frames) if times[i, 1] > start and times[i, 0] < start + length]
    assert len(chosen) == min(count, len(inside))
    assert (np.diff(chosen) > 0).all()
    assert set(chosen.tolist()) <= set(inside)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (inside[0], inside[-1])
