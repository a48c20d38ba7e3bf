import json
import random

import pytest

from pipeline.budget.census import take_census
from pipeline.config_load import load_config
from pipeline.errors import UserError


@pytest.fixture
def census(tmp_path):
    def take(rows, most, task="qa"):
        path = tmp_path / "manifest.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return take_census(load_config(None, [f"manifest={path}", f"output={tmp_path}/out"], task), most)

    return take


def rows_of(videos, questions=3):
    return [{"uri": f"/v/{n}.mp4", "question": f"q{q}"} for q in range(questions) for n in range(videos)]


def test_counts_are_exact_and_a_small_manifest_is_its_own_sample(census):
    rows = [*rows_of(5), {"uri": "/v/0.mp4", "question": "q", "frames": 4}, {"uri": "https://h/x.mp4"}, {}]
    found = census(rows, 32)
    assert (found.rows, found.refused, found.videos) == (18, 2, 6)
    assert found.refusals == {"uri_scheme": 1, "uri_missing": 1}
    assert {(video.uri, video.frames): video.rows for video in found.sample} == {
        ("/v/0.mp4", 4): 1,
        **{(f"/v/{n}.mp4", None): 3 for n in range(5)},
    }


def test_a_sample_has_every_question_about_its_videos_in_whatever_order_they_stand(census):
    rows = rows_of(100)
    found = census(rows, 10)
    assert (found.rows, found.videos, len(found.sample)) == (300, 100, 10)
    assert all({q.prompt for q in video.questions} == {"q0", "q1", "q2"} for video in found.sample)
    random.Random(3).shuffle(rows)
    assert {video.uri for video in census(rows, 10).sample} == {video.uri for video in found.sample}


def test_a_sample_is_spread_over_the_manifest(census):
    places = [int(video.uri[3:-4]) for video in census(rows_of(400, 1), 100).sample]
    assert 15 < sum(place < 100 for place in places) < 36


def test_overrides_of_rows_are_kept(census):
    [video] = census([{"uri": "/v/0.mp4", "question": "q", "retention": 0.7, "max_new_tokens": 5}], 4).sample
    assert (video.questions[0].retention, video.questions[0].max_new_tokens) == (0.7, 5)


def test_an_empty_manifest_is_refused(census):
    with pytest.raises(UserError, match="empty"):
        census([], 4)
