"""`doctor` as a user starts it, and beside a cluster that runs."""

import json
import platform

import pytest
import ray
from typer.testing import CliRunner

from jobs.doctor import app
from pipeline.doctor.cluster import look_at_cluster
from tests.jobs.conftest import BUCKET
from tests.video.samples import write_video

MACHINE = ["python", "packages", "device", "codecs", "decord", "cluster", "disk", "shared memory", "open files"]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def doctor(*words: str):
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, list(words))  # paths of tests are long, and would be folded


def test_without_a_job_the_machine_is_looked_at():
    run = doctor("--json")
    told = json.loads(run.stdout)
    assert [check["name"] for check in told["checks"]] == MACHINE
    assert run.exit_code == told["exit_status"] == 0, run.stdout


def test_a_job_on_s3_is_looked_at_too(s3_server, tmp_path):
    s3_server.put(str(write_video(tmp_path / "a.mp4", frames=4)), f"{BUCKET}/doctor/videos/a.mp4")
    job = tmp_path / "job.yaml"
    job.write_text(f"task: caption\nmanifest: s3://{BUCKET}/doctor/videos\noutput: s3://{BUCKET}/doctor/out\n")
    run = doctor("--json", "--config", str(job), "model.device=cpu")
    told = json.loads(run.stdout)
    assert [check["name"] for check in told["checks"]] == ["config", *MACHINE, "manifest", "output", "clock", "model"]
    assert run.exit_code == 0, run.stdout
    assert s3_server.find(f"{BUCKET}/doctor/out") == []


def test_what_fails_is_told_with_what_to_do(tmp_path):
    run = doctor("task=caption", f"manifest={tmp_path}/none.jsonl", f"output={tmp_path}/out")
    assert run.exit_code == 2
    assert "none.jsonl: not found" in run.stdout
    assert "→ check that the path is right" in run.stdout
    assert run.stdout.endswith("to mend: manifest\n")


def test_a_mistake_in_the_job_file_does_not_hide_the_machine():
    run = doctor("--json", "task=caption", "manifest=m", "output=o", "budget.retenton=0.3")
    told = {check["name"]: check for check in json.loads(run.stdout)["checks"]}
    assert run.exit_code == 2
    assert "budget.retention" in told["config"]["found"]
    assert set(told) == {"config", *MACHINE}


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_runs_answers_with_its_versions():
    found = look_at_cluster(ray.get_runtime_context().gcs_address)
    assert found.status == "ok"
    assert found.found.endswith(f"answers, with Ray {ray.__version__} and Python {platform.python_version()} as here")
