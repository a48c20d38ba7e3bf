"""The whole job in this process, on real MP4s, with the built-in model. Answers are not judged here."""

import json
import shutil
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipeline.tiny
from pipeline.config_load import load_config
from pipeline.errors import ClusterError, UserError
from pipeline.progress import Progress
from pipeline.results import RESULT_COLUMNS
from pipeline.run import run_job
from pipeline.stages import VIDEOS_AT_ONCE
from tests.jobs.engines import (
    DyingEngine,
    OnceDyingEngine,
    SlowEngine,
    broken_engine,
    dying_engine,
    unusable_engine,
)
from tests.video.samples import write_bad_files, write_video

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def job(tmp_path, write_manifest):
    """Runs a job over manifest rows; returns its summary."""

    def run(rows: list[dict], *given: str, task: str = "qa", load=None, on_progress=None):
        plain = (f"manifest={write_manifest(rows)}", f"output={tmp_path}/out", "generation.max_new_tokens=4")
        given = (*plain, "cluster.decoders=1", *given)
        return run_job(load_config(None, given, task), on_progress, load)

    return run


@pytest.fixture
def results(tmp_path):
    def read() -> list[dict]:
        files = sorted((tmp_path / "out" / "results").rglob("*.parquet"))
        return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]

    return read


@pytest.fixture
def summary_on_disk(tmp_path):
    def read() -> dict:
        [file] = (tmp_path / "out" / "runs").glob("*/summary.json")
        return json.loads(file.read_text())

    return read


def test_a_job_answers_every_row_of_a_mixed_manifest(job, results, summary_on_disk, tmp_path):
    good = [write_video(tmp_path / "videos" / f"{n}.mp4", frames=30, size=(160, 96)) for n in range(4)]
    one_frame = write_video(tmp_path / "videos" / "one.mp4", frames=1)
    bad = write_bad_files(tmp_path / "bad")
    rows = [
        {"uri": str(path), "question": question, "options": options, "reference": "red", "night": 7}
        for path in good
        for question, options in [("what color is it", ["red", "blue"]), ("how many", None), ("which shape", None)]
    ]
    rows += [{"uri": str(one_frame), "question": "what is it", "retention": 1.0}]
    rows += [{"uri": str(path), "question": "what is it"} for path in bad.values()]
    rows += [rows[0], rows[0], {"uri": "https://host/x.mp4", "question": "q"}]
    rows += [{"uri": str(good[0]), "question": "when", "start_s": 1.0, "end_s": 2.0, "frames": 2}]
    told: list[Progress] = []
    summary = job(
        rows,
        "budget.retention=0.3",
        "cluster.rows_per_shard=5",
        "cluster.batch_size=3",
        "cluster.decoders=2",
        "report.samples=1000",
        on_progress=told.append,
    )

    found = results()
    samples = {path.name for path in tmp_path.glob("out/runs/*/samples/*")}
    assert samples == {f"{row['item_id']}.{kind}" for row in found if row["answer"] for kind in ("json", "webp")}
    assert len(found) == len(rows) == len({row["item_id"] for row in found})
    assert set(RESULT_COLUMNS) <= set(found[0])
    asked = Counter((row["uri"], row["question"]) for row in rows if "https" not in row["uri"])
    assert Counter((row["uri"], row["prompt"].splitlines()[0]) for row in found if "https" not in row["uri"]) == asked
    codes = Counter(row["error_code"] for row in found)
    assert codes == {
        None: 16,
        "not_found": 2,
        "empty_file": 1,
        "truncated": 1,
        "not_a_video": 1,
        "no_video_stream": 1,
        "uri_scheme": 1,
    }
    for row in (row for row in found if row["status"] == "ok"):
        if row["uri"] == str(one_frame):
            assert (row["frames"], row["retention_requested"]) == (1, 1.0)
        elif row["prompt"] == "when":
            # The keyframe next to 1.0 s, and the frame at 1.9 s, which is far from any.
            assert (row["frames"], row["frame_times_s"]) == (2, pytest.approx([1.2, 1.9]))
        else:
            assert row["frames"] == 16
            assert abs(row["retention_achieved"] - 0.3) <= 0.01
            assert sorted(set(row["stage_tokens"]), reverse=True) == row["stage_tokens"]
        assert row["model"] == "builtin:tiny"
        assert row["total_ms"] >= row["decode_ms"] + row["wait_ms"] - 1.0
    carried = [row for row in found if row["night"] == 7]
    assert len(carried) == 14
    assert {row["reference"] for row in carried} == {"red"}

    # Every video was decoded once for all of its questions: these share one moment of fetching.
    for path in map(str, good[1:]):
        assert len({row["started_at"] for row in found if row["uri"] == path}) == 1

    assert (summary.rows, summary.ok, summary.errors) == (len(rows), 16, len(rows) - 16)
    assert summary.error_codes == {code: count for code, count in codes.items() if code}
    assert summary.exit_status == 1
    assert summary.video_tokens == sum(row["video_tokens"] or 0 for row in found)
    assert summary.stage_ms["decode_ms"] == pytest.approx(sum(row["decode_ms"] or 0 for row in found))
    assert summary.decode_cpu_ms == pytest.approx(sum(row["decode_cpu_ms"] or 0 for row in found))
    assert all(row["decode_cpu_ms"] > 0 for row in found if row["status"] == "ok")
    assert summary_on_disk() == json.loads(summary.to_json())
    assert [progress.phase for progress in told][:2] == ["plan", "start"]
    assert (told[-1].phase, told[-1].rows, told[-1].failed) == ("done", len(rows), len(rows) - 16)
    assert [p.rows for p in told] == sorted(p.rows for p in told)


def test_a_folder_is_a_manifest_and_failures_within_the_limit_are_no_failure(results, tmp_path, monkeypatch):
    for n in range(3):
        write_video(tmp_path / "videos" / f"{n}.mp4", frames=6)
    (tmp_path / "videos" / "notes.txt").write_text("not a video")
    (tmp_path / "videos" / "broken.mp4").write_text("not a video")
    shutil.copytree(Path(pipeline.tiny.__file__).parent / "checkpoint", tmp_path / "model")
    monkeypatch.chdir(tmp_path)  # the workers run elsewhere: relative paths are the driver's
    given = ["manifest=videos", "output=out", "model.source=model", "generation.max_new_tokens=4", "video.frames=4"]
    summary = run_job(load_config(None, [*given, "failures.max_failed_share=0.25"], "caption"))
    assert (summary.exit_status, summary.rows, summary.videos, summary.failed_share) == (0, 4, 3, 0.25)
    answered = {(row["frames"], row["task"], row["prompt"], row["model"]) for row in results() if row["status"] == "ok"}
    assert answered == {(4, "caption", "Describe the video.", "model")}


def test_without_a_usable_row_no_cluster_is_needed(job, results, monkeypatch):
    monkeypatch.setattr("pipeline.run.cluster", lambda: pytest.fail("a cluster for nothing"))
    summary = job([{"uri": "ftp://host/a.mp4", "question": "q"}])
    assert (summary.exit_status, summary.videos_per_min, summary.retention_mean) == (1, None, None)
    assert [row["error_code"] for row in results()] == ["uri_scheme"]


def test_a_model_that_cannot_be_loaded_is_the_users_to_change(job, results, summary_on_disk, tmp_path):
    rows = [{"uri": str(write_video(tmp_path / "a.mp4")), "question": "q"}]
    with pytest.raises(UserError, match=r"^model\.source: /models/x: weight lm_head has shape \[1\]"):
        job(rows, load=unusable_engine)
    assert results() == []
    assert (summary_on_disk()["exit_status"], summary_on_disk()["rows"]) == (2, 0)


def test_a_graph_that_breaks_leaves_its_shards_open(job, results, summary_on_disk, tmp_path):
    rows = [{"uri": str(write_video(tmp_path / "a.mp4")), "question": "q"}, {"uri": "ftp://x/y", "question": "q"}]
    with pytest.raises(ClusterError, match="no space left on device") as caught:
        job(rows, "cluster.rows_per_shard=1", load=broken_engine)
    assert "\n" not in str(caught.value)
    assert [row["error_code"] for row in results()] == ["uri_scheme"]
    summary = summary_on_disk()
    assert (summary["exit_status"], summary["rows"], summary["manifest_rows"]) == (3, 1, 2)


def test_a_row_that_kills_its_worker_costs_no_other(job, results, tmp_path):
    questions = ["q0", "q1", "die", "q3", "q4", "q5"]
    rows = [
        {"uri": str(write_video(tmp_path / f"{n}.mp4", frames=4)), "question": question}
        for n, question in enumerate(questions)
    ]
    summary = job(rows, "cluster.batch_size=3", "failures.retries=1", load=DyingEngine)
    assert (summary.exit_status, summary.ok, summary.error_codes) == (1, 5, {"worker_died": 1})
    told = {row["prompt"]: (row["error_stage"], row["error_code"], row["answer"]) for row in results()}
    answered = {question: (None, None, f"answer to {question}") for question in questions}
    assert told == answered | {"die": ("generate", "worker_died", None)}
    [given_up] = [row for row in results() if row["status"] == "error"]
    assert (given_up["attempts"], given_up["frames"], given_up["codec"]) == (2, None, "h264")
    assert given_up["error_message"] == "the process that worked on it died 2 times"
    assert {row["attempts"] for row in results()} == {1, 2}


def test_a_model_that_kills_whoever_loads_it_ends_the_run(job, summary_on_disk, tmp_path):
    rows = [{"uri": str(write_video(tmp_path / "a.mp4")), "question": "q"}]
    with pytest.raises(ClusterError, match="the process that loads the model died 3 times while it did so"):
        job(rows, load=dying_engine)
    assert summary_on_disk()["exit_status"] == 3


def test_work_in_flight_in_a_worker_that_dies_is_done_again(job, results, tmp_path):
    rows = [{"uri": str(write_video(tmp_path / f"{n}.mp4", frames=4)), "question": f"q{n}"} for n in range(6)]
    load = partial(OnceDyingEngine, mark=str(tmp_path / "died"))
    summary = job(rows, "cluster.batch_size=2", load=load)
    assert (tmp_path / "died").exists()
    assert (summary.exit_status, summary.ok) == (0, 6)
    assert sorted(row["answer"] for row in results()) == [f"answer to q{n}" for n in range(6)]


def test_decoding_runs_ahead_of_a_slow_model_by_a_few_batches_only(job, results, tmp_path):
    rows = [{"uri": str(write_video(tmp_path / f"{n}.mp4", frames=4)), "question": "q"} for n in range(30)]
    seen: list[int] = []

    def count(_: Progress) -> None:
        seen.append(decoding_processes(memory_mb=4097))

    given = ["cluster.batch_size=2", "cluster.rows_per_shard=10", "video.decoder_memory_mb=4097"]
    job(rows, *given, load=SlowEngine, on_progress=count)
    found = sorted(results(), key=lambda row: row["started_at"])
    assert (found[0]["status"], len(found)) == ("ok", 30)
    # How many videos are somewhere between fetch and answer when the next one is fetched.
    ahead = [sum(other["started_at"] <= row["started_at"] < other["finished_at"] for other in found) for row in found]
    assert max(ahead) <= 12
    assert max(seen) == VIDEOS_AT_ONCE
    until = time.monotonic() + 30
    while decoding_processes(memory_mb=4097) and time.monotonic() < until:
        time.sleep(0.1)
    assert decoding_processes(memory_mb=4097) == 0


def decoding_processes(memory_mb: int) -> int:
    """How many there are on this machine with this limit, which no other test sets."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            commands.append((process / "cmdline").read_bytes().split(b"\0"))
    return sum(b"pipeline.video.child" in command and str(memory_mb).encode() in command for command in commands)
