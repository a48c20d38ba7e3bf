"""A mean retention that is spent unevenly, and still kept."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budget.uneven import Uneven, eventfulness
from pipeline.config_load import load_config
from pipeline.errors import UserError


def video(change, frames=8, size=64):
    """Frames that differ from one to the next by `change` of 255 everywhere."""
    values = np.where(np.arange(frames) % 2, change, 0).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (frames, size, size, 3))


def test_eventfulness_is_the_mean_change_of_a_pixel():
    assert eventfulness(video(0)) == 0
    assert eventfulness(video(51)) == pytest.approx(0.2)
    assert eventfulness(video(51, size=480)) == pytest.approx(0.2)
    assert eventfulness(video(51)[:1]) is None
    half = np.array(video(0, size=64))
    half[1::2, :, 32:] = 102
    assert eventfulness(half) == pytest.approx(0.2)


def test_still_videos_get_less_than_eventful_ones():
    spend = Uneven(0.3)
    got = {change: [] for change in (1, 40)}
    for _ in range(50):
        for change, of_it in got.items():
            of_it.append(spend(None, video(change)))
    still, eventful = (np.array(of_it[10:]) for of_it in got.values())
    assert still.max() < 0.25
    assert eventful.min() > 0.35
    assert np.mean([*still, *eventful]) == pytest.approx(0.3, rel=0.02)


@given(
    changes=st.lists(st.integers(0, 255), min_size=60, max_size=120),
    lengths=st.lists(st.integers(1, 16), min_size=1, max_size=8),
    mean=st.sampled_from([0.05, 0.3, 0.8, 1.0]),
)
def test_the_mean_over_all_tokens_is_kept_and_no_video_leaves_the_bounds(changes, lengths, mean):
    spend = Uneven(0.5)
    tokens = [lengths[n % len(lengths)] for n in range(len(changes))]
    got = [spend(mean, video(c, frames=t, size=8), rows=2) for c, t in zip(changes, tokens, strict=True)]
    assert all(max(mean / 2, 2 * mean - 1) - 1e-4 <= one <= min(1, 2 * mean) for one in got)
    assert np.average(got, weights=tokens) == pytest.approx(mean, rel=0.15)


def test_rows_count_as_often_as_they_ask_and_not_at_all_with_a_retention_of_their_own():
    spend = Uneven(0.4)
    assert [spend(None, video(200), rows=0) for _ in range(5)] == [0.4] * 5
    alone = Uneven(0.4)
    many = [spend(None, video(c), rows=3) for c in (5, 80, 20, 9)]
    assert many != [0.4] * 4
    assert many == [alone(None, video(c), rows=1) for c in (5, 80, 20, 9)]


def test_threads_share_it():
    spend = Uneven(0.3)
    got = []

    def work(change):
        got.extend(spend(None, video(change)) for _ in range(200))

    threads = [threading.Thread(target=work, args=(change,)) for change in (2, 30, 90)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.mean(got) == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["budget.gpu_hours=2", "budget.adaptive=true"], "budget.adaptive.*budget.gpu_hours moves the retention"),
        (["budget.retention=0.3", "budget.adaptive=true", "pruning.method=fastv"], "budget.adaptive needs hieravid"),
    ],
)
def test_what_cannot_be_spent_unevenly_is_refused(given, told):
    with pytest.raises(UserError, match=told):
        load_config(None, ["task=caption", "manifest=m.jsonl", "output=out", *given])


def test_it_is_told_only_where_it_is_on():
    job = load_config(None, ["task=caption", "manifest=m.jsonl", "output=out", "budget.retention=0.3"])
    assert job.model_dump(mode="json")["budget"] == {"retention": 0.3}
    on = load_config(None, ["task=caption", "manifest=m.jsonl", "output=out", "budget.adaptive=yes"])
    assert on.model_dump(mode="json")["budget"] == {"retention": 1.0, "adaptive": True}
