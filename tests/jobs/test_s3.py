"""The whole job with manifest, videos and results behind a real S3 protocol server over HTTP."""

import json
import os
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import pipeline.tiny
from jobs.console import query_command
from pipeline.config_load import load_config
from pipeline.errors import UserError
from pipeline.run import run_job
from tests.jobs.conftest import BUCKET
from tests.video.samples import write_bad_files, write_video


def test_manifest_videos_and_results_on_s3(ray_cluster, s3_server, tmp_path):
    root = f"s3://{BUCKET}/night"
    sizes = {}
    for n in range(3):
        path = write_video(tmp_path / f"{n}.mp4", frames=12)
        s3_server.put(str(path), f"{root}/videos/{n}.mp4")
        sizes[f"{root}/videos/{n}.mp4"] = path.stat().st_size
    s3_server.put(str(write_bad_files(tmp_path / "bad")["truncated"]), f"{root}/videos/cut.mp4")
    asked = [{"uri": uri, "question": question} for uri in sizes for question in ("what color", "how many")]
    asked += [{"uri": f"{root}/videos/cut.mp4", "question": "q"}, {"uri": f"{root}/videos/gone.mp4", "question": "q"}]
    s3_server.pipe(f"{root}/manifest.jsonl", "\n".join(map(json.dumps, asked)).encode())

    for file in (Path(pipeline.tiny.__file__).parent / "checkpoint").iterdir():
        s3_server.put(str(file), f"{root}/models/tiny/{file.name}")

    given = [f"manifest={root}/manifest.jsonl", f"output={root}/out", "failures.max_failed_share=0.5"]
    given += [f"model.source={root}/models/tiny", "generation.stop=[zzz]", "pruning.kv_retention=0.5"]
    given += ["cluster.rows_per_shard=4", "cluster.decoders=1", "generation.max_new_tokens=4"]
    summary = run_job(load_config(None, given, "qa"))

    assert (summary.exit_status, summary.rows, summary.ok) == (0, 8, 6)
    files = s3_server.glob(summary.results)
    assert len(files) == summary.shards == 2
    found = [row for file in files for row in pq.read_table(file, filesystem=s3_server).to_pylist()]
    told = {(row["uri"].rpartition("/")[2], row["error_code"]) for row in found}
    assert told == {
        ("0.mp4", None),
        ("1.mp4", None),
        ("2.mp4", None),
        ("cut.mp4", "truncated"),
        ("gone.mp4", "not_found"),
    }
    assert {row["uri"]: row["bytes_fetched"] for row in found if row["status"] == "ok"} == sizes
    answered = [row for row in found if row["status"] == "ok"]
    assert {(row["model"], row["quantization"]) for row in answered} == {("tiny", "none")}
    assert all(row["peak_memory_mb"] > 0 for row in answered)
    assert len(list(Path(os.environ["HIERAVID_CACHE"]).rglob("fetched.json"))) == 1
    run = f"{root}/out/runs/{summary.run_id}"
    assert json.loads(s3_server.cat(f"{run}/summary.json")) == json.loads(summary.to_json())
    assert s3_server.exists(f"{run}/config.yaml")
    assert not list(tmp_path.glob("hieravid-*"))
    shown = subprocess.run(query_command(f"{root}/out"), shell=True, capture_output=True, text=True, timeout=100)
    assert "retention_achieved" in shown.stdout, shown.stderr


@pytest.mark.usefixtures("s3_server")
@pytest.mark.parametrize("given", ["manifest=s3://archive/gone.jsonl", "manifest=s3://no-such-bucket-here/m.parquet"])
def test_a_manifest_that_is_not_there_is_the_users_to_change(given, tmp_path):
    with pytest.raises(UserError, match="not found"):
        run_job(load_config(None, [given, f"output={tmp_path}"], "qa"))
