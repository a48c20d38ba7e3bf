"""Outputs of jobs, made by the code that makes them, without a model and a cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow.parquet as pq

from pipeline.config_load import load_config
from pipeline.errors import RowError
from pipeline.ledger import RunRecord
from pipeline.plan import plan_run
from pipeline.results import blank_row, commit_shard, error_row
from pipeline.run_record import Plan
from pipeline.storage import join, read_bytes, write_atomic
from pipeline.summary_files import SummaryFiles

NOW = datetime(2026, 11, 22, 20, 30, tzinfo=UTC)
STAGES = {"fetch_ms": 10.0, "decode_ms": 90.0, "vision_ms": 40.0, "prune_ms": 5.0, "prefill_ms": 30.0}


def answered(item: dict, **measured) -> dict:
    """The result of one row of a manifest shard: its own prompt, in capitals."""
    told = {"status": "ok", "attempts": 1, "answer": item["prompt"].upper(), "device": "cpu", "model": "fake"}
    tokens = {"video_tokens": 100, "retention_requested": 0.5, "retention_achieved": 0.5}
    times = {**STAGES, "generate_ms": 25.0, "total_ms": 300.0, "started_at": NOW, "finished_at": datetime.now(UTC)}
    return {**blank_row(item["item_id"]), **told, **tokens, **times, **measured}


def failed(item: dict, code: str = "truncated") -> dict:
    return error_row(item["item_id"], RowError("decode", code, "the file ends before its index"))


def write_run(
    place: str,
    run_id: str,
    rows: list[dict],
    answer: Callable[[dict], dict] = answered,
    fingerprint: str = "0" * 12,
    committed: int | None = None,
    exit_status: int | None = 0,
    name: str = "output",
    settings: tuple[str, ...] = (),
) -> Plan:
    """A run of a question job on `<place>/<name>`; only its first `committed` shards (of two rows) are done.

    Its summary tells `exit_status`, or with None what it does while the job is at work.
    """
    manifest = join(place, f"{run_id}.jsonl")
    write_atomic(manifest, "".join(json.dumps(row) + "\n" for row in rows).encode())
    given = [f"manifest={manifest}", f"output={join(place, name)}", "cluster.rows_per_shard=2", *settings]
    config = load_config(None, given, "qa")
    plan = plan_run(config, run_id, fingerprint, NOW)
    done = plan.shards[:committed]
    for shard in done:
        items = pq.read_table(io.BytesIO(read_bytes(shard.uri))).to_pylist()
        commit_shard(plan, shard, [answer(item) for item in items if item["error_code"] is None])
    record = RunRecord(replace(plan), frozenset(shard.name for shard in done))
    summaries = SummaryFiles([record], config, "fake", NOW, lambda: None)
    if exit_status is not None:
        summaries.finish(exit_status)
    return plan


def questions(count: int, prompt: str = "what") -> list[dict]:
    return [{"uri": f"/videos/{n}.mp4", "video_id": f"v{n}", "question": prompt} for n in range(count)]
