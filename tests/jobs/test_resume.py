"""What a second start on an output does. The model is a stand-in that writes down what it was asked."""

import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config_load import load_config
from pipeline.errors import ClusterError, UserError
from pipeline.progress import Progress
from pipeline.resume import Redo
from pipeline.run import run_job
from tests.jobs.engines import FakeEngine
from tests.video.samples import write_video


@dataclass
class WritingEngine(FakeEngine):
    """Appends the prompt of each answer to a file."""

    journal: str = ""

    def answer_one(self, place, request):
        with Path(self.journal).open("a") as file:
            file.write(f"{request.prompt}\n")
        return super().answer_one(place, request)


@dataclass
class HangingEngine(FakeEngine):
    """Answers nothing before the file `gate` is there."""

    gate: str = ""

    def answer_one(self, place, request):
        while not Path(self.gate).exists():
            time.sleep(0.1)
        return super().answer_one(place, request)


@pytest.fixture
def job(tmp_path, write_manifest):
    """Starts a job on the same output each time, with two rows to a shard."""

    def start(rows: list[dict], *given: str, load=None, **kwargs):
        plain = (f"manifest={write_manifest(rows)}", f"output={tmp_path}/out", "cluster.rows_per_shard=2")
        config = load_config(None, (*plain, "cluster.decoders=1", *given), "qa")
        return run_job(config, load=load or partial(WritingEngine, journal=str(tmp_path / "journal")), **kwargs)

    return start


@pytest.fixture
def found(tmp_path):
    """The rows of all result files by question."""

    def read() -> dict[str, dict]:
        files = sorted((tmp_path / "out" / "results").rglob("*.parquet"))
        rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        assert len({row["item_id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
        return {row["prompt"]: row for row in rows}

    return read


@pytest.fixture
def answered(tmp_path):
    """How often each question was answered."""
    return lambda: Counter((tmp_path / "journal").read_text().split())


@pytest.fixture
def summaries(tmp_path):
    """Each run's summary.json, oldest first, after a comparison with its result files."""

    def read() -> list[dict]:
        told = [json.loads(file.read_text()) for file in sorted((tmp_path / "out" / "runs").glob("*/summary.json"))]
        for summary in told:
            files = list((tmp_path / "out" / "results").rglob(f"{summary['run_id']}-*.parquet"))
            codes = Counter(code for file in files for code in pq.read_table(file)["error_code"].to_pylist())
            assert (summary["shards"], summary["rows"]) == (len(files), codes.total())
            assert (summary["ok"], summary["error_codes"]) == (codes.pop(None, 0), dict(codes))
        return told

    return read


@pytest.fixture
def no_cluster(monkeypatch):
    monkeypatch.setattr("pipeline.run.cluster", lambda: pytest.fail("a cluster for nothing"))


def questions(tmp_path: Path, *names: str) -> list[dict]:
    return [{"uri": str(write_video(tmp_path / f"{name}.mp4", frames=4)), "question": name} for name in names]


def refused(*names: str) -> list[dict]:
    return [{"uri": f"ftp://host/{name}.mp4", "question": name} for name in names]


@pytest.mark.usefixtures("ray_cluster")
def test_an_interrupted_job_goes_on_and_answers_nothing_twice(job, found, answered, summaries, tmp_path, monkeypatch):
    rows = questions(tmp_path, *"abcdefgh")

    def interrupt(now: Progress) -> None:
        if found():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(rows, on_progress=interrupt)
    committed = set(found())
    [summary] = summaries()
    assert (summary["exit_status"], summary["rows"], summary["manifest_rows"]) == (130, len(committed), 8)
    assert 0 < len(committed) < 8

    told: list[Progress] = []
    summary = job(rows, on_progress=told.append)
    assert (summary.exit_status, summary.rows, summary.ok) == (0, 8, 8)
    assert [moment.note for moment in told if moment.note] == [
        f"answering {8 - len(committed)} rows that an earlier start left open"
    ]
    assert told[-1].total == 8 - len(committed)
    assert set(found()) == set("abcdefgh")
    assert {name: count for name, count in answered().items() if name in committed} == dict.fromkeys(committed, 1)
    [on_disk] = summaries()
    assert on_disk == json.loads(summary.to_json())
    assert on_disk["elapsed_s"] > on_disk["working_s"] > 0

    monkeypatch.setattr("pipeline.run.cluster", lambda: pytest.fail("a cluster for nothing"))
    before = answered()
    again = job(rows, on_progress=told.append)
    assert (again.exit_status, again.run_id, answered()) == (0, summary.run_id, before)
    assert told[-1].note.startswith("nothing to do")


@pytest.mark.usefixtures("ray_cluster")
def test_a_grown_manifest_appends_and_a_restart_answers_all_of_it_again(job, found, answered, summaries, tmp_path):
    rows = questions(tmp_path, *"abcd")
    first = job(rows[:3])
    second = job(rows)
    assert (first.rows, second.rows) == (3, 1)
    assert [summary["rows"] for summary in summaries()] == [3, 1]
    assert (set(found()), answered()) == (set("abcd"), Counter("abcd"))

    both = job(rows[1:], redo=Redo("all"))
    assert answered() == Counter("abcdbcd")
    assert set(found()) == set("abcd")
    assert (both.run_id, both.rows, both.exit_status) == (second.run_id, 4, 0)
    assert [(summary["rows"], summary["exit_status"]) for summary in summaries()] == [(3, 0), (1, 0)]


@pytest.mark.usefixtures("ray_cluster")
def test_failed_rows_are_answered_again_by_code_and_the_others_stay(job, found, answered, summaries, tmp_path):
    rows = questions(tmp_path, *"abcd")
    for name in "bc":
        (tmp_path / f"{name}.mp4").rename(tmp_path / f"{name}.away")
    (tmp_path / "d.mp4").write_text("not a video")
    assert job([*rows, *refused("e")]).error_codes == {"not_found": 2, "not_a_video": 1, "uri_scheme": 1}
    before = found()

    for name in "bcd":
        write_video(tmp_path / f"{name}.mp4", frames=4)
    summary = job([*rows, *refused("e")], redo=Redo("failed", frozenset({"not_found"})))
    assert summary.error_codes == {"not_a_video": 1, "uri_scheme": 1}
    after = found()
    assert {name for name in after if after[name] != before[name]} == {"b", "c"}
    assert {name: row["item_id"] for name, row in after.items()} == {n: row["item_id"] for n, row in before.items()}
    assert answered() == Counter("abc")

    summary = job([*rows, *refused("e")], "failures.max_failed_share=0.2", redo=Redo("failed"))
    assert (summary.error_codes, summary.exit_status) == ({"uri_scheme": 1}, 0)
    assert answered() == Counter("abcd")
    assert summaries()[0] == json.loads(summary.to_json())


@pytest.mark.usefixtures("ray_cluster")
def test_a_job_that_fails_too_often_stops_with_whole_shards_and_can_go_on(job, found, summaries, tmp_path):
    missing = [{"uri": str(tmp_path / f"{n // 10}.mp4"), "question": str(n)} for n in range(500)]
    given = ("cluster.rows_per_shard=20", "generation.max_new_tokens=4")
    told: list[Progress] = []
    summary = job(missing, *given, on_progress=told.append)
    assert (summary.exit_status, summary.manifest_rows) == (1, 500)
    assert 200 <= summary.rows < 500
    assert summary.rows == len(found())
    assert "no further rows are taken" in next(moment.note for moment in told if moment.note)
    assert summaries()[0]["exit_status"] == 1

    summary = job(missing, *given, "failures.max_failed_share=1")
    assert (summary.exit_status, summary.rows, len(found())) == (0, 500, 500)


@pytest.mark.usefixtures("ray_cluster")
def test_a_stage_that_hangs_ends_the_job_and_is_named(job, found, summaries, tmp_path):
    rows = questions(tmp_path, "a")
    with pytest.raises(ClusterError, match=r"^no progress for 5 s; .*Answerer has \d in work and 0 done") as caught:
        job(rows, "failures.stall_timeout_s=5", load=partial(HangingEngine, gate=str(tmp_path / "gate")))
    assert "\n" not in str(caught.value)
    assert (found(), summaries()[0]["exit_status"]) == ({}, 3)
    (tmp_path / "gate").touch()  # the hanging actor lives as long as the connection to Ray, which is the test's here
    assert job(rows).exit_status == 0


@pytest.mark.usefixtures("no_cluster")
def test_a_changed_prompt_is_another_job_and_the_old_results_stay(job, tmp_path):
    for length in (4, 5):
        job(refused("a"), f"generation.max_new_tokens={length}")
    assert len(list((tmp_path / "out" / "results").rglob("*.parquet"))) == 2


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize("left", ["nothing", "running"])
def test_a_summary_that_a_killed_driver_did_not_finish_is_made_from_the_files(job, summaries, tmp_path, left):
    rows = refused("a", "b", "c")
    job(rows)
    [file] = (tmp_path / "out" / "runs").glob("*/summary.json")
    told = json.loads(file.read_text())
    if left == "nothing":
        file.unlink()
    else:
        file.write_text(json.dumps(told | {"exit_status": None, "rows": 1, "shards": 1}))
    job(rows)
    [summary] = summaries()
    assert (summary["exit_status"], summary["rows"]) == (1, 3)


@pytest.mark.usefixtures("no_cluster")
def test_who_has_lost_the_lease_writes_nothing_more(job, found, tmp_path):
    def lose(now: Progress) -> None:
        if now.phase == "start":
            (tmp_path / "out" / "runs" / "lease.json").unlink()

    with pytest.raises(ClusterError, match="lease"):
        job(refused("a"), on_progress=lose)
    [file] = (tmp_path / "out" / "runs").glob("*/summary.json")
    assert (found(), json.loads(file.read_text())["exit_status"]) == ({}, None)
    assert job(refused("a")).rows == 1


def test_an_unknown_error_code_is_the_users_to_change():
    with pytest.raises(UserError, match=r"'not_fuond' is not an error code; there are .*not_found"):
        Redo("failed", frozenset({"not_fuond"}))
