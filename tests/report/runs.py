"""Outputs as a job leaves them, without the job: result rows, plan.json, summary.json and config.yaml."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.result_schema import RESULT_COLUMNS, RESULT_SCHEMA
from pipeline.results import Committed
from pipeline.storage import join, write_atomic
from pipeline.summary import count_file, summarize

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
RUN_A, RUN_B = "20261122T120000Z-aaaaaa", "20261123T120000Z-bbbbbb"
_FACTS = {"run_id": RUN_A, "task": "qa", "attempts": 1, "config_fingerprint": "f00d", "code_version": "0.1.0+1"}
_CONFIG = "name: nightly\ncluster: {answerers: 2, gpus_per_answerer: 1}\n"


def answered(number: int, **changes: Any) -> dict[str, Any]:
    """A row with an answer, every number of it known."""
    started = NOON + timedelta(seconds=number * 0.5)
    row = {
        **dict.fromkeys(RESULT_COLUMNS),
        **_FACTS,
        "item_id": f"{number:032x}",
        "video_id": f"video-{number // 2}",
        "uri": f"/archive/{number // 2}.mp4",
        "prompt": f"what happens ({number % 2})",
        "answer": f"a red circle moves, {number}",
        "finish_reason": "stop",
        "status": "ok",
        "duration_s": 10.0 + number % 50,
        "width": 1280,
        "height": 720,
        "frames": 16,
        "bytes_fetched": 1_000_000 + number,
        "video_tokens": 576,
        "prompt_tokens": 20,
        "output_tokens": 8,
        "segments": 2,
        "stage_layers": [0, 2, 4, 6],
        "stage_tokens": [318, 190, 115, 68],
        "retention_requested": 0.3,
        "retention_achieved": 0.3,
        "flops_ratio": 0.292,
        "kv_ratio": 0.378,
        "fetch_ms": 5.0,
        "decode_ms": 40.0,
        "decode_cpu_ms": 38.0,
        "wait_ms": 100.0,
        "vision_ms": 30.0,
        "prune_ms": 5.0,
        "prefill_ms": 20.0,
        "generate_ms": 10.0 + number % 7,
        "total_ms": 200.0 + number % 100,
        "peak_memory_mb": 900.0,
        "model": "builtin:tiny",
        "dtype": "float32",
        "pruning_method": "hieravid",
        "host": "one",
        "device": "cpu",
        "started_at": started,
        "finished_at": started + timedelta(seconds=1 + number % 5 / 10),
    }
    return row | changes


def failed(number: int, code: str = "not_found", stage: str = "fetch", **changes: Any) -> dict[str, Any]:
    """An error row of which nothing was measured."""
    return {
        **dict.fromkeys(RESULT_COLUMNS),
        **_FACTS,
        "item_id": f"{number:032x}",
        "video_id": f"lost-{number}",
        "uri": f"/archive/lost-{number}.mp4",
        "prompt": "what happens",
        "status": "error",
        "error_stage": stage,
        "error_code": code,
        "error_message": f"/archive/lost-{number}.mp4 was not found",
    } | changes


def write_run(
    output: str,
    rows: Sequence[dict[str, Any]],
    run_id: str = RUN_A,
    planned: int | None = None,
    files: int = 1,
    exit_status: int | None = 0,
    with_summary: bool = True,
) -> str:
    """Write a run of these rows, spread over `files` result files; returns its folder."""
    folder = join(output, "runs", run_id)
    date = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"
    table = pa.Table.from_pylist([{**row, "run_id": run_id} for row in rows], RESULT_SCHEMA)
    write_table(output, table, run_id, files)
    plan = {"format": 1, "run_id": run_id, "task": "qa", "run_date": date, "fingerprint": "f00d"}
    plan["rows"] = len(rows) if planned is None else planned
    write_atomic(join(folder, "plan.json"), json.dumps(plan).encode())
    write_atomic(join(folder, "config.yaml"), _CONFIG.encode())
    if with_summary:
        tally = count_file(Committed(run_id, "shard-00000", "", table.num_rows, 0, {}, table))
        facts = {"run_id": run_id, "name": "nightly", "task": "qa", "output": output, "results": f"{output}/*"}
        facts |= {"fingerprint": "f00d", "model": "builtin:tiny", "pruning_method": "hieravid"}
        facts |= {"retention_requested": 0.3, "exit_status": exit_status, "manifest_rows": plan["rows"]}
        summary = summarize(tally, NOON, 60.0, **facts, max_failed_share=0.05)
        write_atomic(join(folder, "summary.json"), json.dumps(asdict(summary)).encode())
    return folder


def write_table(output: str, table: pa.Table, run_id: str = RUN_A, files: int = 1) -> None:
    """Write result files alone; without a row there is none."""
    date = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}"
    step = -(-table.num_rows // files) or 1
    for number, begin in enumerate(range(0, table.num_rows, step)):
        sink = io.BytesIO()
        pq.write_table(table.slice(begin, step), sink, compression="zstd")
        place = join(output, "results", f"run_date={date}", f"{run_id}-shard-{number:05d}.parquet")
        write_atomic(place, sink.getvalue())
