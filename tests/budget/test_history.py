"""Timings of a run that is over, read from its result files, as a plan of the night that follows takes them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.budget.forecast import forecast
from pipeline.budget.history import profile_of_run
from pipeline.budget.workload import done_flops
from pipeline.config_load import load_config
from pipeline.engine import VideoLLM
from pipeline.errors import RowError, UserError
from pipeline.result_schema import RESULT_SCHEMA
from pipeline.results import blank_row, error_row
from pruning import make_pruner
from pruning.schedule import plan_stages
from tests.video.samples import write_video

TOKENS, TEXT, FRAMES = 576, 14, 16
NEVER_NULL = ("run_id", "task", "config_fingerprint", "code_version")
OLD, NEW = "20261120T220000Z-0a0a0a", "20261121T220000Z-0b0b0b"
# What the model of the made-up run takes: the numbers that must be found again.
VISION_S, PREFILL_S, FLOP_S, PRUNE_S, KEPT_S, GENERATE_S = 0.003, 0.005, 2e-10, 1e-5, 4e-5, 0.0025


@pytest.fixture(scope="module")
def llm():
    return VideoLLM.load("builtin:tiny", device="cpu")


@pytest.fixture
def job(tmp_path):
    write_video(tmp_path / "one.mp4", frames=20)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"uri": "one.mp4"}) + "\n")
    return load_config(None, ["task=caption", f"manifest={tmp_path}/manifest.jsonl", f"output={tmp_path}/out"])


def answered(llm, job, video, retention, together=1, slower=1.0, **facts):
    """A row of a video that `together` rows are about."""
    plan = plan_stages(TOKENS, llm.shape.layers, retention, [0.5, 0.35, 0.245, 0.105])
    flops = done_flops(plan, TEXT, together, llm.shape, make_pruner(job.pruning))
    row = blank_row(f"{video} {together}") | {"status": "ok", "attempts": 1, "uri": video, "frames": FRAMES}
    row |= {"frame_times_s": [float(n) for n in range(FRAMES)], "host": "a", "model": "builtin:tiny"}
    row |= {"model_hash": llm.info.model_hash, "dtype": "float32", "device": "cpu", "quantization": "none"}
    row |= {"pruning_method": "hieravid", "video_tokens": TOKENS, "prompt_tokens": TEXT, "output_tokens": 10}
    row |= {"stage_layers": list(plan.layers), "stage_tokens": list(plan.counts), "retention_requested": retention}
    row |= {"vision_ms": VISION_S * FRAMES * 1e3 / together, "generate_ms": GENERATE_S * 10 * 1e3}
    row |= {"prefill_ms": (PREFILL_S + FLOP_S * flops) * 1e3 * slower}
    row |= {"prune_ms": (PRUNE_S + KEPT_S * retention) * TOKENS * 1e3 if retention < 1 else 0.0}
    return row | facts


def write(job, run_id, *files):
    folder = job.output.replace("file://", "")
    for number, rows in enumerate(files):
        uri = f"{folder}/results/run_date=2026-11-21/{run_id}-shard-{number:05d}.parquet"
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        named = [row | {name: row[name] or "x" for name in NEVER_NULL} for row in rows]
        pq.write_table(pa.Table.from_pylist(named, schema=RESULT_SCHEMA), uri)
    return folder


def test_what_rows_took_is_found_again(llm, job):
    asked_twice = answered(llm, job, "a", 0.3, together=2)
    files = [
        [asked_twice, asked_twice, error_row("x", RowError("decode", "decode_failed", "no"))],
        [answered(llm, job, "b", 0.6), answered(llm, job, "c", 1.0), answered(llm, job, "d", 0.6, device="cuda")],
    ]
    output = write(job, NEW, *files)
    write(job, OLD, [answered(llm, job, "a", 0.3, slower=7.0)])
    found = profile_of_run(output, job, llm, threads=3)
    assert found.vision_s_per_frame == pytest.approx(VISION_S)
    assert found.prefill_s_per_row == pytest.approx(PREFILL_S)
    assert found.prefill_s_per_flop == pytest.approx(FLOP_S)
    assert found.prune_s_per_token == pytest.approx(PRUNE_S)
    assert found.prune_s_per_kept_token == pytest.approx(KEPT_S)
    assert found.generate_s_per_token == pytest.approx(GENERATE_S)
    assert (found.output_tokens, found.videos, found.threads, found.device) == (10, 3, 3, "cpu")
    assert found.machine == f"1 host of run {NEW}"
    # A run's own folder is that run, not the latest.
    earlier = profile_of_run(f"{output}/runs/{OLD}", job, llm, threads=1)
    assert earlier.prefill_s_per_flop > 5 * FLOP_S


def test_a_plan_by_an_earlier_run_comes_to_what_that_run_took(llm, job):
    row = answered(llm, job, "a", 0.3)
    output = write(job, NEW, [row])
    plan = forecast(
        job.model_copy(update={"budget": job.budget.model_copy(update={"retention": 0.3})}),
        profile=output,
        told=lambda _: None,
    )
    busy = plan.costs.at(0.3).busy_s
    assert plan.profile.machine == f"1 host of run {NEW}"
    assert busy["vision"] == pytest.approx(VISION_S * FRAMES, rel=1e-3)
    assert busy["generate"] == pytest.approx(GENERATE_S * 10, rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (lambda llm, job: [error_row("x", RowError("decode", "decode_failed", "no"))], "no answered row yet"),
        (lambda llm, job: [answered(llm, job, "a", 0.3, model_hash="b" * 64)], "another model_hash: bbbb"),
        (lambda llm, job: [answered(llm, job, "a", 0.3, pruning_method="uniform")], "pruning_method: uniform"),
    ],
)
def test_a_run_that_tells_nothing_of_this_model_is_refused(llm, job, rows, told):
    output = write(job, NEW, rows(llm, job))
    with pytest.raises(UserError, match=told) as caught:
        profile_of_run(output, job, llm, threads=1)
    assert NEW in str(caught.value)


def test_a_folder_without_a_run_is_refused(llm, job, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        profile_of_run(str(tmp_path), job, llm, threads=1)


def test_a_run_of_another_version_is_refused(llm, job):
    output = write(job, NEW, [answered(llm, job, "a", 0.3)])
    [file] = Path(output).rglob("*.parquet")
    pq.write_table(pq.ParquetFile(file).read().drop_columns(["prune_ms", "host"]), file)
    with pytest.raises(UserError, match=r"another version of this program: it has no host, prune_ms"):
        profile_of_run(output, job, llm, threads=1)
