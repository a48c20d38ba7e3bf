"""Jobs held to a budget while they run, with a stub whose cost follows the retention that it is asked for."""

import json
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

import pipeline.run
from pipeline.benchmark.pipeline.stubs import stub_answer
from pipeline.budget.controller import RowCosts
from pipeline.budget.cost import PoolSizes
from pipeline.budget.on_cluster import Settled
from pipeline.config_load import load_config
from pipeline.errors import UserError
from pipeline.run import run_job
from tests.jobs.engines import FakeEngine
from tests.video.samples import write_video

pytestmark = pytest.mark.usefixtures("ray_cluster")

STEADY_S, WHOLE_S = 0.04, 0.16
QUESTIONS = 3  # about each video


@dataclass
class CostlyEngine(FakeEngine):
    """Takes STEADY_S for a row, and WHOLE_S times its retention."""

    def answer_one(self, place, request):
        retention = request.retention
        time.sleep(STEADY_S + WHOLE_S * retention)
        answer = stub_answer(place, request.prompt)
        seconds = {"vision_ms": STEADY_S * 1e3, "prefill_ms": WHOLE_S * retention * 1e3, "generate_ms": 0.0}
        stats = replace(answer.stats, retention_requested=retention, retention_achieved=retention, **seconds)
        return replace(answer, stats=stats)


@dataclass(frozen=True)
class StubCosts:
    """What a plan made of the engine, wrong by `factor`."""

    factor: float
    pools = PoolSizes(decoders=1, answerers=1, gpus=0, threads=1)
    workload = SimpleNamespace(least_retention=lambda: 0.05)

    def per_row(self, least, most):
        points = [least + (most - least) * n / 20 for n in range(21)]
        return RowCosts(STEADY_S * self.factor, 0.0, points, [WHOLE_S * r * self.factor for r in points])


@pytest.fixture
def rows_of_a_job(tmp_path, write_manifest, monkeypatch):
    """Runs a job over so many rows with a share of the hours that it would take unpruned; its rows as they ended."""

    def run(rows: int, share: float, factor: float = 1.0, **given) -> list[dict]:
        videos = [write_video(tmp_path / f"{n}.mp4", frames=2) for n in range(rows // QUESTIONS)]
        asked = [{"uri": str(video), "question": f"q {n}"} | given for video in videos for n in range(QUESTIONS)]
        hours = rows * (STEADY_S + WHOLE_S) * share / 3600
        begin_with = min(1.0, (hours * 3600 / rows / factor - STEADY_S) / WHOLE_S)
        settled = Settled(max(0.05, begin_with), StubCosts(factor))
        monkeypatch.setattr(pipeline.run, "settle_budget", lambda *job: settled)
        plain = (f"manifest={write_manifest(asked)}", f"output={tmp_path}/out", "cluster.decoders=1", "video.frames=2")
        job = load_config(None, (*plain, "cluster.batch_size=4", f"budget.gpu_hours={hours}"), "qa")
        summary = run_job(job, load=CostlyEngine)
        assert (summary.exit_status, summary.ok) == (0, rows)
        files = (tmp_path / "out" / "results").rglob("*.parquet")
        found = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
        return sorted(found, key=lambda row: row["finished_at"])

    return run


def test_a_budget_of_hours_moves_the_retention_while_the_job_runs(rows_of_a_job):
    got = [row["retention_requested"] for row in rows_of_a_job(45, share=0.5, factor=0.5)]
    assert got[-1] < got[0], "rows cost twice what was planned"
    assert all(0.05 <= retention <= 1 for retention in got)


def test_a_row_of_its_own_retention_keeps_it(rows_of_a_job):
    assert {row["retention_requested"] for row in rows_of_a_job(6, share=0.5, retention=0.9)} == {0.9}


@pytest.mark.soak
@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_budget_of_sixty_percent_is_used_up_and_not_passed(rows_of_a_job, factor):
    rows = rows_of_a_job(300, share=0.6, factor=factor)
    took = (rows[-1]["finished_at"] - rows[0]["finished_at"]).total_seconds()
    assert took == pytest.approx(0.6 * 300 * (STEADY_S + WHOLE_S), rel=0.1)


def test_a_budget_out_of_reach_is_refused_before_anything_is_answered(tmp_path, write_manifest):
    video = write_video(tmp_path / "a.mp4", frames=4)
    manifest = write_manifest([{"uri": str(video)}] * 4)
    job = load_config(None, (f"manifest={manifest}", f"output={tmp_path}/out", "budget.gpu_hours=1e-9"), "caption")
    with pytest.raises(UserError, match=r"budget.gpu_hours = 1e-09 is out of reach: at a retention of .* still takes"):
        run_job(job)
    [summary] = tmp_path.glob("out/runs/*/summary.json")
    assert json.loads(summary.read_text())["exit_status"] == 2
    assert not list(tmp_path.glob("out/results/**/*.parquet"))


def test_a_budget_of_tokens_comes_to_a_retention(tmp_path, write_manifest):
    video = write_video(tmp_path / "a.mp4", frames=40, size=(160, 96))
    manifest = write_manifest([{"uri": str(video)}])
    given = (f"manifest={manifest}", f"output={tmp_path}/out", "budget.tokens_per_video=200")
    job = load_config(None, (*given, "generation.max_new_tokens=4"), "caption")
    summary = run_job(job)
    assert summary.kept_tokens == pytest.approx(200, rel=0.02)
    assert (summary.retention_requested, summary.budget) == (None, {"tokens_per_video": 200})
    told = []
    assert run_job(job, told.append).rows == 1
    assert not [now for now in told if "timed" in now.note], "nothing is left to do, so nothing is timed"
