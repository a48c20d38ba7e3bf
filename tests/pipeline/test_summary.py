from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from pipeline.result_schema import RESULT_SCHEMA
from pipeline.results import Committed, blank_row
from pipeline.summary import add_up, count_file, parse_summary, summarize

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
FACTS = {
    "run_id": "r",
    "name": "n",
    "task": "qa",
    "output": "o",
    "results": "o/*",
    "fingerprint": "f",
    "model": "m",
    "pruning_method": "none",
    "retention_requested": 1.0,
    "exit_status": None,
    "manifest_rows": 9,
    "max_failed_share": 0.05,
}


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def file_of(*rows: dict) -> Committed:
    facts = {"run_id": "r", "task": "qa", "attempts": 1, "config_fingerprint": "f", "code_version": "1", "status": "ok"}
    table = pa.Table.from_pylist([blank_row(str(n)) | facts | row for n, row in enumerate(rows)], RESULT_SCHEMA)
    codes = [row["error_code"] for row in rows if row.get("status") == "error"]
    return Committed(
        "r", "shard-00000", "uri", len(rows), len(codes), {code: codes.count(code) for code in codes}, table
    )


def test_time_in_which_nothing_was_in_work_does_not_count():
    before = file_of(
        {"started_at": at(0), "finished_at": at(4)},
        {"started_at": at(3), "finished_at": at(10)},
        {"started_at": at(1), "finished_at": at(2)},
    )
    assert count_file(before).working_s == 10.0
    after_a_crash = file_of({"started_at": at(3600), "finished_at": at(3605)}, {})
    assert add_up([count_file(after_a_crash), count_file(before)]).working_s == 15.0


def test_files_add_up():
    failed = {"status": "error", "error_code": "truncated"}
    one = file_of({"video_id": "a", "video_tokens": 10, "retention_achieved": 0.5}, failed)
    tally = add_up([count_file(one), count_file(file_of(failed, {"video_id": "b", "decode_ms": 2.0}))])
    assert (tally.shards, tally.rows, tally.ok, tally.errors) == (2, 4, 2, 2)
    assert (tally.videos, tally.video_tokens, tally.kept_tokens) == (2, 10, 5.0)
    assert (tally.error_codes, tally.stage_ms["decode_ms"]) == ({"truncated": 2}, 2.0)
    assert tally.working_s is None


def test_a_summary_reads_back():
    summary = summarize(add_up([count_file(file_of({"video_id": "a"}))]), NOON, 12.5, **FACTS)
    assert parse_summary(summary.to_json().encode()) == summary


@pytest.mark.parametrize("data", [b"", b"[]", b'{"rows": 3}', b"\xff"])
def test_what_is_no_summary_of_this_version_is_none(data):
    assert parse_summary(data) is None
