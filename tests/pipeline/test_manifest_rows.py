import datetime as dt
import decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ERROR_CODES
from pipeline.manifest_rows import MAX_PROMPT, Unreadable, plan_row
from pipeline.prompts import OPTION_REQUEST


def planned(task="qa", default_prompt=None, **values):
    values = {"uri": "a.mp4", **({"question": "what?"} if task == "qa" else {}), **values}
    return plan_row(values, "/data", task, default_prompt)


def test_a_plain_row_is_resolved_and_named():
    row = planned()
    assert (row.uri, row.prompt, row.error) == ("/data/a.mp4", "what?", None)
    assert row.video_id == planned(uri="./a.mp4").video_id != planned(uri="b.mp4").video_id
    assert len(row.video_id) == 16


def test_the_video_s_name_does_not_depend_on_the_query():
    versions = [planned(uri=f"s3://b/a.mp4{query}") for query in ("", "?versionId=1", "?versionId=2")]
    assert len({row.video_id for row in versions}) == 1
    assert len({row.identity("f") for row in versions}) == 3


@pytest.mark.parametrize(("given_id", "kept"), [("clip-7", "clip-7"), (7, "7"), ("Où ?", "Où ?")])
def test_the_manifest_s_own_video_id_is_kept(given_id, kept):
    assert planned(video_id=given_id).video_id == kept


@pytest.mark.parametrize(
    ("task", "values", "default", "prompt"),
    [
        ("caption", {}, "Describe.", "Describe."),
        ("caption", {"prompt": "List all objects."}, "Describe.", "List all objects."),
        ("caption", {"prompt": "  "}, "Describe.", "Describe."),
        ("qa", {"question": "what?"}, None, "what?"),
        ("qa", {"question": None, "prompt": "which?"}, None, "which?"),
        ("qa", {"question": "what?", "prompt": "which?"}, None, "what?"),
        ("qa", {"question": None}, "Is there a dog?", "Is there a dog?"),
    ],
)
def test_what_is_asked(task, values, default, prompt):
    assert planned(task, default, **values).prompt == prompt


@pytest.mark.parametrize(
    "options",
    [["red", "blue"], '["red", "blue"]', "red|blue", " red | blue "],
)
def test_options_are_lettered_in_the_prompt(options):
    row = planned(options=options)
    assert row.options == ["red", "blue"]
    assert row.prompt == f"what?\nA. red\nB. blue\n{OPTION_REQUEST}"


@pytest.mark.parametrize("options", [None, [], "", " "])
def test_no_options_are_no_options(options):
    row = planned(options=options)
    assert (row.options, row.prompt, row.error) == (None, "what?", None)


def test_numbers_among_the_options_are_texts():
    assert planned(options=[1, 2.5]).options == ["1", "2.5"]


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ({"start_s": 1, "end_s": 2.5}, {"start_s": 1.0, "end_s": 2.5}),
        ({"start_s": "1.5", "end_s": ""}, {"start_s": 1.5, "end_s": None}),
        ({"retention": 0.3, "frames": 8, "max_new_tokens": 4}, {"retention": 0.3, "frames": 8, "max_new_tokens": 4}),
        ({"retention": "1", "frames": "8"}, {"retention": 1.0, "frames": 8}),
        ({"frames": 8.0, "retention": decimal.Decimal("0.5")}, {"frames": 8, "retention": 0.5}),
    ],
)
def test_overrides_are_read_from_numbers_and_texts(values, read):
    row = planned(**values)
    assert row.error is None
    assert {name: getattr(row, name) for name in read} == read


@pytest.mark.parametrize(
    ("values", "code", "told"),
    [
        ({"uri": None}, "uri_missing", "no uri"),
        ({"uri": "  "}, "uri_missing", "no uri"),
        ({"uri": 5}, "bad_row", "uri = 5"),
        ({"uri": Unreadable()}, "bad_row", "cannot be read"),
        ({"uri": "gs://b/a"}, "uri_scheme", "gs"),
        ({"uri": "s3://k:s@b/a"}, "uri_credentials", "credentials"),
        ({"video_id": "https://h/a?sig=1"}, "uri_credentials", "video_id"),
        ({"video_id": "x" * 2000}, "row_too_large", "video_id has 2000"),
        ({"video_id": True}, "bad_row", "video_id"),
        ({"start_s": -1}, "bad_row", "start_s = -1"),
        ({"start_s": float("nan")}, "bad_row", "start_s = nan"),
        ({"start_s": True}, "bad_row", "start_s = True"),
        ({"start_s": 5, "end_s": 5}, "bad_row", "above 5"),
        ({"end_s": 0}, "bad_row", "end_s = 0"),
        ({"end_s": dt.timedelta(seconds=1)}, "bad_row", "end_s"),
        ({"retention": 0}, "bad_row", "retention = 0: a number above 0 and at most 1"),
        ({"retention": 1.5}, "bad_row", "retention = 1.5"),
        ({"retention": "a lot"}, "bad_row", "retention = 'a lot'"),
        ({"retention": 10**400}, "bad_row", "retention"),
        ({"frames": 0}, "bad_row", "frames = 0"),
        ({"frames": 2.5}, "bad_row", "frames = 2.5"),
        ({"max_new_tokens": -1}, "bad_row", "max_new_tokens = -1"),
        ({"question": None}, "bad_row", "neither a question nor a prompt"),
        ({"question": 5}, "bad_row", "question = 5"),
        ({"question": "x" * (MAX_PROMPT + 1)}, "row_too_large", "prompt has"),
        ({"options": ["red"]}, "bad_row", "options"),
        ({"options": ["red", "red"]}, "bad_row", "different"),
        ({"options": ["red", None]}, "bad_row", "options"),
        ({"options": [str(number) for number in range(27)]}, "bad_row", "2 to 26"),
        ({"options": "[1,"}, "bad_row", "options"),
        ({"options": '["\\ud800", "b"]'}, "bad_row", "different texts"),
        ({"options": {"a": 1}}, "bad_row", "options"),
    ],
)
def test_a_bad_value_refuses_the_row_and_names_it(values, code, told):
    error = planned(**values).error
    assert (error.stage, error.code) == ("manifest", code)
    assert told in error.message
    assert len(error.message) <= 300


def test_a_refused_uri_is_stored_without_its_secrets():
    row = planned(uri="https://user:pw@host/clip.mp4?sig=abc&x=1")
    assert row.uri == "https://host/clip.mp4"
    assert row.video_id == planned(uri="https://host/clip.mp4?sig=def").video_id


def test_a_secret_is_not_told_however_long_it_is():
    assert "pw" not in planned(uri=b"s3://user:" + b"pw" * 500 + b"@bucket/clip.mp4").error.message


def test_a_refused_row_keeps_what_is_sound():
    row = planned(video_id="clip-7", retention=3)
    assert (row.uri, row.video_id, row.retention) == ("/data/a.mp4", "clip-7", None)


def test_refused_rows_are_told_apart_by_what_they_said():
    assert planned(retention=2).identity("f") != planned(retention=3).identity("f")
    assert planned(retention=2).identity("f") == planned(retention=2).identity("f")


@pytest.mark.parametrize(
    "change",
    [
        {"uri": "b.mp4"},
        {"video_id": "other"},
        {"question": "who?"},
        {"options": ["a", "b"]},
        {"start_s": 1},
        {"end_s": 9},
        {"retention": 0.5},
        {"frames": 3},
        {"max_new_tokens": 5},
    ],
)
def test_whatever_a_row_asks_is_part_of_its_identity(change):
    assert planned(**change).identity("f") != planned().identity("f")
    assert planned().identity("g") != planned().identity("f")


def test_rows_of_one_video_range_and_frame_count_are_one_group():
    def group(**values):
        row = planned(**values)
        return row.group(row.identity("f"))

    assert group() == group(question="who?", retention=0.5, max_new_tokens=3, video_id="x", start_s=0)
    assert len({group(), group(uri="b.mp4"), group(start_s=1), group(end_s=1), group(frames=4)}) == 5


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=3) | st.dates()
)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("uri", "video_id", "prompt", "question", "options", "start_s", "end_s", "retention", "frames"), VALUES
        ),
    ),
    st.sampled_from(["caption", "qa"]),
)
def test_no_row_is_too_odd_to_be_planned_or_refused(values, task):
    row = plan_row(values, "/data", task, "Describe.")
    row.group(row.identity("f"))
    if row.error is None:
        assert row.uri
        assert row.video_id
        assert row.prompt
    else:
        assert ERROR_CODES[row.error.code][0] == "manifest"
        assert "\n" not in row.error.message
