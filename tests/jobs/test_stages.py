import functools
from datetime import UTC, datetime, timedelta

import av
import numpy as np
import pyarrow as pa
import pytest

from pipeline.attempts import BegunWork
from pipeline.config_load import load_config
from pipeline.engine import VideoLLM
from pipeline.stages import Answerer
from pipeline.stages_tables import DECODED_SCHEMA, unpack_answers
from pruning import PruningConfig
from tests.jobs.engines import FakeEngine
from tests.jobs.groups import group, groups, item
from tests.video.samples import read_number, write_bad_files, write_video

SAMPLING = {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "seed": 0}


@functools.cache
def tiny():
    return VideoLLM.load("builtin:tiny", device="cpu")


def answerer(engine: FakeEngine) -> Answerer:
    return Answerer(lambda: engine, PruningConfig(retention=0.5), SAMPLING)


@pytest.fixture
def decoded(tmp_path, decoder):
    """Two videos, decoded: one with three questions, one with one."""
    first, second = write_video(tmp_path / "a.mp4", frames=8), write_video(tmp_path / "b.mp4", frames=2)
    return decoder(groups(group(first, [item("a1"), item("a2"), item("a3")]), group(second, [item("b1")])))


def test_every_item_of_every_video_gets_its_row(decoded):
    engine = FakeEngine()
    rows = unpack_answers(answerer(engine)(decoded))
    assert [(row["item_id"], row["status"], row["answer"]) for row in rows] == [
        (name, "ok", f"answer to about {name}") for name in ("a1", "a2", "a3", "b1")
    ]
    assert engine.rounds == [3, 1]  # a call for each video: in the pipeline each comes by itself
    assert [row["frames"] for row in rows] == [4, 4, 4, 2]
    assert {row["model"] for row in rows} == {"fake"}
    assert {row["shard"] for row in rows} == {"shard-00000"}


def test_questions_about_one_video_share_its_key_and_its_frames(decoded):
    engine = FakeEngine()
    answerer(engine)(decoded)
    keys = [request.video_key for request in engine.requests]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert [read_number(frame) for frame in engine.requests[1].frames] == [0, 2, 5, 7]
    assert engine.requests[0].frame_times_s == pytest.approx([0.0, 0.2, 0.5, 0.7])
    assert engine.requests[0].duration_s == decoded["duration_s"][0].as_py() > 0.7


def test_a_row_may_override_retention_and_length(tmp_path, decoder):
    path = write_video(tmp_path / "a.mp4")
    table = decoder(groups(group(path, [item("x", retention=0.1, max_new_tokens=3), item("y")])))
    engine = FakeEngine()
    answerer(engine)(table)
    assert [(r.retention, r.max_new_tokens) for r in engine.requests] == [(0.1, 3), (None, 16)]


def test_an_uneven_budget_gives_a_video_s_rows_one_retention_of_their_own(tmp_path, decoder):
    still, moving = tmp_path / "still.mp4", tmp_path / "moving.mp4"
    write_video(moving, frames=20)
    with av.open(str(still), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        grey = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        for packet in [*(packet for _ in range(20) for packet in stream.encode(grey)), *stream.encode()]:
            container.mux(packet)
    engine = FakeEngine()
    stage = Answerer(lambda: engine, PruningConfig(retention=0.3), SAMPLING, is_uneven=True)
    for number in range(12):
        path = (still, moving)[number % 2]
        stage(decoder(groups(group(path, [item("a"), item("b"), item("c", retention=0.9)]))))
    asked = np.array([request.retention for request in engine.requests]).reshape(12, 3)
    assert (asked[:, 0] == asked[:, 1]).all()
    assert (asked[:, 2] == 0.9).all()
    assert asked[2::2, 0].max() < 0.3 < asked[3::2, 0].min()
    assert asked[2:, 0].mean() == pytest.approx(0.3, rel=0.1)


def test_the_job_s_sampling_reaches_the_engine(decoded):
    engine = FakeEngine()
    generation = load_config(None, ["manifest=m", "output=o", "generation.stop=[Q]"], "qa").generation
    sampling = generation.model_dump(exclude={"prompt"}) | {"time_instruction": True}
    Answerer(lambda: engine, PruningConfig(), sampling)(decoded)
    assert {(r.stop, r.time_instruction, r.seed) for r in engine.requests} == {(("Q",), True, 0)}


def test_stage_times_are_shared_by_the_items_of_a_video(decoded):
    rows = unpack_answers(answerer(FakeEngine())(decoded))
    for name in ("fetch_ms", "decode_ms", "decode_cpu_ms"):
        first, second = decoded[name].to_pylist()
        assert [row[name] for row in rows] == pytest.approx([first / 3] * 3 + [second])


def test_waiting_and_total_are_wall_times(decoded):
    earlier = pa.array(
        [datetime.now(UTC) - timedelta(seconds=s) for s in (5, 3)], DECODED_SCHEMA.field("decoded_at").type
    )
    aged = decoded.set_column(DECODED_SCHEMA.names.index("decoded_at"), "decoded_at", earlier)
    rows = unpack_answers(answerer(FakeEngine())(aged))
    assert [round(row["wait_ms"] / 1e3) for row in rows] == [5, 5, 5, 3]
    for row in rows:
        assert row["total_ms"] == pytest.approx((row["finished_at"] - row["started_at"]).total_seconds() * 1e3)


def test_an_option_is_read_from_the_answer(tmp_path, decoder):
    path = write_video(tmp_path / "a.mp4")
    asked = item("x", prompt="red", options=["red", "blue"])
    rows = unpack_answers(answerer(FakeEngine())(decoder(groups(group(path, [asked])))))
    assert rows[0]["answer_option"] == "red"


def test_a_video_that_failed_before_gets_an_error_row_for_each_item(tmp_path, decoder):
    bad = group(write_bad_files(tmp_path)["text"], [item("x"), item("y")])
    good = group(write_video(tmp_path / "a.mp4"), [item("z")])
    rows = unpack_answers(answerer(FakeEngine())(decoder(groups(bad, good))))
    told = {row["item_id"]: (row["status"], row["error_stage"], row["error_code"]) for row in rows}
    assert told == {
        "x": ("error", "decode", "not_a_video"),
        "y": ("error", "decode", "not_a_video"),
        "z": ("ok", None, None),
    }
    assert all(row["answer"] is None and row["vision_ms"] is None for row in rows if row["status"] == "error")


def test_a_request_that_cannot_be_answered_costs_no_other(decoded):
    rows = unpack_answers(answerer(FakeEngine(poison=("about a2",)))(decoded))
    told = {row["item_id"]: (row["status"], row["error_code"], row["attempts"]) for row in rows}
    assert told == {
        "a1": ("ok", None, 1),
        "a2": ("error", "generate_failed", 2),
        "a3": ("ok", None, 2),
        "b1": ("ok", None, 1),
    }
    message = next(row["error_message"] for row in rows if row["item_id"] == "a2")
    assert message.startswith("RuntimeError: poisoned")
    assert "abcdefgh1234" not in message
    assert "\n" not in message


def test_a_video_that_processes_died_of_is_given_up_with_all_its_rows(decoded):
    died_twice, died_once = (f"generate {row['shard']} {row['group']}" for row in decoded.to_pylist())
    count = BegunWork()
    for work, deaths in ((died_twice, 2), (died_once, 1)):
        for _ in range(deaths):
            count.begin(work, alone=True)
    stage = Answerer(FakeEngine, PruningConfig(), SAMPLING, retries=1, attempts=count)
    rows = unpack_answers(stage(decoded))
    told = {row["item_id"]: (row["error_stage"], row["error_code"], row["attempts"]) for row in rows}
    given_up = ("generate", "worker_died", 2)
    assert told == {"a1": given_up, "a2": given_up, "a3": given_up, "b1": (None, None, 2)}
    assert {row["error_message"] for row in rows} == {None, "the process that worked on it died 2 times"}


def test_a_prompt_that_is_too_long_is_named_so(decoded):
    rows = unpack_answers(answerer(FakeEngine(too_long=("about b1",)))(decoded))
    failed = [row for row in rows if row["status"] == "error"]
    assert [(row["item_id"], row["error_code"]) for row in failed] == [("b1", "prompt_too_long")]
    assert failed[0]["error_message"] == "9 tokens exceed 8 positions"
    assert failed[0]["frames"] == 2


def test_a_retention_that_a_method_cannot_reach_costs_its_row_alone(tmp_path, decoder):
    video = write_video(tmp_path / "a.mp4", frames=2)
    items = [item("a1", retention=0.1), item("a2"), item("a3", retention=0.2)]
    decoded = decoder(groups(group(video, items)))
    rows = unpack_answers(Answerer(tiny, PruningConfig(method="fastv", retention=0.5), SAMPLING)(decoded))
    told = {row["item_id"]: (row["error_stage"], row["error_code"], row["retention_achieved"]) for row in rows}
    assert told["a1"] == ("generate", "retention_unreachable", None)
    assert told["a2"] == (None, None, pytest.approx(0.5, abs=0.01))
    assert told["a3"] == (None, None, pytest.approx(0.2, abs=0.01))
    [message] = [row["error_message"] for row in rows if row["item_id"] == "a1"]
    assert "cannot reach a retention of 0.1 here, its minimum is 0.13" in message


def test_what_the_model_was_not_trained_with_is_an_error_of_each_row(decoded):
    rows = unpack_answers(Answerer(tiny, PruningConfig(), SAMPLING | {"time_instruction": True})(decoded))
    assert {(row["error_stage"], row["error_code"]) for row in rows} == {("generate", "invalid_request")}
    assert all("time" in row["error_message"] for row in rows)
