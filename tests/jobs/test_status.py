"""How far runs are, told from their folders."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

import jobs.status
from jobs.hieravid import run
from pipeline.lease import LeaseTimes, hold_lease
from pipeline.lease_record import LeaseRecord
from pipeline.query_files import find_place
from pipeline.status import read_status
from pipeline.storage import delete, read_bytes, write_atomic
from tests.jobs.conftest import BUCKET
from tests.jobs.outputs import answered, failed, questions, write_run

TIMES = LeaseTimes(heartbeat_s=0.2, expiry_s=1.0)


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("s3_server")
    return f"s3://{BUCKET}/{request.node.name.partition('[')[0]}"


def told(capsys, *words: str) -> dict:
    capsys.readouterr()
    status = run(["status", *words, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def shown(capsys, *words: str) -> str:
    capsys.readouterr()
    status = run(["status", *words])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def write_lease(output: str, age_s: float) -> None:
    """A lease whose holder was last seen so long ago."""
    renewed = f"{datetime.now(UTC) - timedelta(seconds=age_s):%Y-%m-%d %H:%M:%S UTC}"
    record = LeaseRecord("t" * 32, "the job small", "node-7", 4711, renewed, renewed, 12)
    write_atomic(f"{output}/runs/lease.json", record.dump())


def half_failed(item: dict) -> dict:
    return failed(item) if item["video_id"] in ("v1", "v3") else answered(item)


def test_a_run_that_is_done(place, capsys):
    write_run(place, "run-1", questions(5), half_failed)
    out = f"{place}/output"
    [found] = told(capsys, out)["runs"]
    assert {name: found[name] for name in ("state", "exit_status", "rows", "errors", "left", "manifest_rows")} == {
        **{"state": "too many failures", "exit_status": 1, "rows": 5},
        **{"errors": 2, "left": 0, "manifest_rows": 5},
    }
    assert found["error_codes"] == {"truncated": 2}
    assert found["rows_per_min"] > 0
    assert found["summary"] == json.loads(read_bytes(f"{out}/runs/run-1/summary.json"))
    text = shown(capsys, out)
    for part in ("too many failures, exit status 1", "5 of 5, 0 left", "2 (truncated 2)", f"{out}/results/run_date="):
        assert part in text
    assert "hieravid query" in text


@pytest.mark.parametrize(
    ("exit_status", "state"), [(0, "done"), (2, "refused"), (3, "failed"), (130, "interrupted"), (None, "broken off")]
)
def test_how_a_run_ended(tmp_path, capsys, exit_status, state):
    write_run(str(tmp_path), "run-1", questions(4), committed=None if exit_status == 0 else 1, exit_status=exit_status)
    [found] = told(capsys, f"{tmp_path}/output")["runs"]
    assert (found["state"], found["exit_status"], found["left"]) == (state, exit_status, 0 if exit_status == 0 else 2)


def test_a_run_that_goes_on_counts_what_is_committed(place, capsys):
    write_run(place, "run-1", questions(2))
    plan = write_run(place, "run-2", questions(6), committed=2, exit_status=None, fingerprint="1" * 12)
    out = f"{place}/output"
    stale = json.loads(read_bytes(f"{plan.folder}/summary.json")) | {"rows": 2, "ok": 2}
    write_atomic(f"{plan.folder}/summary.json", json.dumps(stale).encode())
    with hold_lease(out, "the job small"):
        found = told(capsys, out)
        text = shown(capsys, out)
    assert "the job small" in found["holder"]
    assert [run["state"] for run in found["runs"]] == ["done", "running"]
    assert (found["runs"][1]["rows"], found["runs"][1]["left"]) == (4, 2)
    assert found["runs"][1]["remaining_s"] > 0
    assert "being written by the job small" in text
    assert "4 of 6, 2 left" in text
    after = told(capsys, out)
    assert after["holder"] is None
    assert after["runs"][1]["state"] == "broken off"
    assert "start the job again" in shown(capsys, out)


def test_one_run_of_several(place, capsys):
    write_run(place, "run-1", questions(2))
    write_run(place, "run-2", questions(3), fingerprint="1" * 12)
    for words in ([f"{place}/output", "run-1"], [f"{place}/output/runs/run-1"]):
        assert [run["run_id"] for run in told(capsys, *words)["runs"]] == ["run-1"]
    text = shown(capsys, f"{place}/output")
    assert "run-1" in text
    assert "3 of 3" in text


def test_a_run_without_a_summary_is_told_of_by_its_plan_and_files(place, capsys):
    plan = write_run(place, "run-1", questions(6), committed=2)
    delete(f"{plan.folder}/summary.json")
    [found] = told(capsys, f"{place}/output")["runs"]
    assert (found["state"], found["rows"], found["left"]) == ("broken off", 4, 2)
    assert "4 of 6" in shown(capsys, f"{place}/output")


@pytest.mark.parametrize(("age_s", "state"), [(1, "running"), (300, "broken off"), (-300, "broken off")])
def test_a_lease_says_by_its_age_whether_the_holder_lives(tmp_path, age_s, state):
    plan = write_run(str(tmp_path), "run-1", questions(4), committed=1, exit_status=None)
    write_lease(plan.output, age_s)
    times = LeaseTimes(expiry_s=0.5)
    assert read_status(find_place(plan.output), times).runs[0].state == state


@pytest.mark.parametrize("age_s", [300, -300])
def test_a_holder_with_another_clock_is_known_by_its_renewals(tmp_path, age_s):
    plan = write_run(str(tmp_path), "run-1", questions(4), committed=1, exit_status=None)
    write_lease(plan.output, age_s)
    uri = f"{plan.output}/runs/lease.json"
    record = LeaseRecord.parse(read_bytes(uri))
    renewal = json.loads(record.dump()) | {"renewals": record.renewals + 1}
    timer = threading.Timer(0.5, lambda: write_atomic(uri, json.dumps(renewal).encode()))
    timer.start()
    assert read_status(find_place(plan.output), LeaseTimes(expiry_s=30)).runs[0].state == "running"
    timer.join()


def test_an_output_whose_first_run_is_being_planned(tmp_path, capsys):
    with hold_lease(str(tmp_path), "the job small"):
        found = told(capsys, str(tmp_path))
    assert "the job small" in found["holder"]
    assert found["runs"] == []


@pytest.mark.parametrize("words", [["{folder}"], ["{folder}/output", "run-9"], ["{folder}/output/runs/run-9"]])
def test_a_run_that_is_not_there_is_one_line(tmp_path, capsys, words):
    write_run(str(tmp_path), "run-1", questions(1))
    capsys.readouterr()
    assert run(["status", *(word.format(folder=tmp_path) for word in words)]) == 2
    out, err = capsys.readouterr()
    [line] = err.splitlines()
    assert line.startswith("error: ")
    assert "holds no run" in line
    assert out == ""


def test_watching_ends_with_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jobs.status, "_INTERVAL_S", 0.05)
    plan = write_run(str(tmp_path), "run-1", questions(4), committed=1, exit_status=None)
    summary = json.loads(read_bytes(f"{plan.folder}/summary.json"))
    with hold_lease(plan.output, "the job small") as lease:

        def end():
            write_atomic(f"{plan.folder}/summary.json", json.dumps(summary | {"exit_status": 130}).encode())
            lease.release()

        timer = threading.Timer(0.5, end)
        timer.start()
        out = shown(capsys, plan.output, "--watch")
        timer.join()
    assert out.index("running") < out.index("interrupted, exit status 130")
