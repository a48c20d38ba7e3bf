import datetime as dt
import decimal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ClusterError, RowError, UserError
from pipeline.item_ids import KnownItems, from_texts
from pipeline.plan import plan_run, subset_shard
from pipeline.results import (
    RESULT_COLUMNS,
    RESULT_SCHEMA,
    SCHEMA_VERSION,
    VERSION_KEY,
    blank_row,
    carried_fields,
    commit_shard,
    error_row,
    read_results,
    result_schema,
    result_uri,
)
from pipeline.storage import exists, filesystem_for, read_bytes
from tests.pipeline.conftest import NOW
from tests.pipeline.strict_s3 import StrictS3

DOCUMENTED = {
    "identity": "item_id run_id video_id uri task prompt",
    "outcome": "answer answer_option finish_reason status error_stage error_code error_message attempts",
    "video": "duration_s fps width height codec decode_backend frames frame_times_s bytes_fetched",
    "tokens": "video_tokens prompt_tokens output_tokens segments stage_layers stage_tokens"
    " retention_requested retention_achieved flops_ratio kv_ratio",
    "latency": "fetch_ms decode_ms decode_cpu_ms wait_ms vision_ms prune_ms prefill_ms generate_ms total_ms"
    " peak_memory_mb",
    "provenance": "model model_hash dtype quantization pruning_method config_fingerprint code_version host device"
    " started_at finished_at",
}


def answered(item_id, **measured):
    return {**blank_row(item_id), "status": "ok", "attempts": 1, "answer": "a dog", **measured}


def planned(config):
    return plan_run(config, "run-1", "0123456789ab", NOW)


def items_of(shard):
    return pq.read_table(pa.BufferReader(read_bytes(shard.uri))).to_pylist()


def committed_rows(plan, *rows):
    (shard,) = plan.shards
    return pq.read_table(pa.BufferReader(read_bytes(commit_shard(plan, shard, rows).uri))).to_pylist()


def test_the_columns_are_the_documented_ones_in_their_types():
    assert list(RESULT_COLUMNS) == " ".join(DOCUMENTED.values()).split()
    for name in RESULT_COLUMNS:
        kind = RESULT_SCHEMA.field(name).type
        if name.endswith(("_ms", "_s", "_ratio")) and name != "frame_times_s":
            assert kind == pa.float64()
        if name.endswith(("_tokens", "frames", "attempts")) and name != "stage_tokens":
            assert kind == pa.int64()
        if name.endswith("_at"):
            assert kind == pa.timestamp("us", tz="UTC")
    assert RESULT_SCHEMA.field("stage_tokens").type == RESULT_SCHEMA.field("stage_layers").type == pa.list_(pa.int64())
    assert RESULT_SCHEMA.field("frame_times_s").type == pa.list_(pa.float64())


def test_carried_columns_that_collide_are_renamed():
    names = ["status", "Model", "run_date", "manifest_status", "note", "Note", ""]
    renamed = dict(carried_fields([pa.field(name, pa.int8()) for name in names]))
    assert {name: field.name for name, field in renamed.items()} == {
        "status": "manifest_manifest_status",
        "Model": "manifest_Model",
        "run_date": "manifest_run_date",
        "manifest_status": "manifest_status",
        "note": "note",
        "Note": "manifest_Note",
        "": "manifest_",
    }
    schema = result_schema(renamed.values())
    assert len({name.casefold() for name in schema.names}) == len(schema)
    assert schema.field("note").type == pa.int8()


def test_a_committed_shard_reads_back(place, job, write_jsonl):
    manifest = write_jsonl({"uri": "b.mp4", "video_id": "v2", "tag": "x"}, {"uri": "a.mp4", "video_id": "v1"})
    plan = planned(job(manifest, f"output={place}/out", "pruning.method=uniform"))
    (shard,) = plan.shards
    rows = [
        answered(item["item_id"], stage_tokens=np.array([9, 3]), frame_times_s=[0.5], started_at=NOW, prune_ms=1.5)
        for item in items_of(shard)
    ]
    committed = commit_shard(plan, shard, reversed(rows))
    assert (
        committed.uri == f"{place}/out/results/run_date=2026-11-22/run-1-shard-00000.parquet" == result_uri(plan, shard)
    )
    assert (committed.rows, committed.errors, committed.error_codes) == (2, 0, {})
    table = pq.read_table(pa.BufferReader(read_bytes(committed.uri)))
    assert table.schema.equals(plan.schema)
    assert table.schema.metadata[VERSION_KEY] == SCHEMA_VERSION.encode()
    assert table["video_id"].to_pylist() == ["v1", "v2"]
    assert table["tag"].to_pylist() == [None, "x"]
    last = table.to_pylist()[1]
    assert (last["stage_tokens"], last["frame_times_s"], last["started_at"]) == ([9, 3], [0.5], NOW)
    assert (last["run_id"], last["task"], last["config_fingerprint"]) == ("run-1", "caption", "0123456789ab")
    assert (last["pruning_method"], last["prompt"]) == ("uniform", "Describe the video.")
    assert last["uri"].endswith("/b.mp4")
    assert last["prefill_ms"] is None


def test_refused_and_lost_rows_are_error_rows(job, write_jsonl):
    plan = planned(job(write_jsonl({"uri": "a.mp4"}, {"uri": "b.mp4"}, {"uri": "gs://x/c.mp4"}, "{bad")))
    (shard,) = plan.shards
    done = next(item["item_id"] for item in items_of(shard) if item["uri"] and item["uri"].endswith("a.mp4"))
    committed = commit_shard(plan, shard, [answered(done)])
    assert (committed.rows, committed.errors) == (4, 3)
    assert committed.error_codes == {"lost": 1, "uri_scheme": 1, "bad_row": 1}
    by_code = {row["error_code"]: row for row in committed.table.to_pylist()}
    assert (by_code["lost"]["error_stage"], by_code["lost"]["attempts"]) == ("generate", 1)
    assert (by_code["bad_row"]["error_stage"], by_code["bad_row"]["attempts"]) == ("manifest", 0)
    assert by_code["uri_scheme"]["uri"] == "gs://x/c.mp4"
    assert by_code[None]["answer"] == "a dog"


def test_a_failure_keeps_what_was_measured_before_it(job, write_jsonl):
    plan = planned(job(write_jsonl({"uri": "a.mp4"})))
    (item,) = items_of(plan.shards[0])
    error = RowError("decode", "truncated", "the file ends early")
    (row,) = committed_rows(plan, {**error_row(item["item_id"], error, attempts=2), "fetch_ms": 3.5})
    assert (row["status"], row["error_stage"], row["error_code"]) == ("error", "decode", "truncated")
    assert (row["error_message"], row["attempts"], row["fetch_ms"]) == ("the file ends early", 2, 3.5)
    assert row["answer"] is None


def test_values_that_went_through_a_data_frame_are_understood(job, write_jsonl):
    plan = planned(job(write_jsonl({"uri": "a.mp4"})))
    (item,) = items_of(plan.shards[0])
    measured = {
        "frames": np.float64(16.0),
        "segments": float("nan"),
        "flops_ratio": np.float32(0.25),
        "fps": float("nan"),
        "stage_layers": np.array([0.0, 2.0]),
        "stage_tokens": None,
        "frame_times_s": float("nan"),
        "finished_at": dt.datetime(2026, 11, 22, 3, 15, 0, 250, tzinfo=dt.UTC),
    }
    (row,) = committed_rows(plan, answered(item["item_id"], **measured))
    assert (row["frames"], row["segments"], row["flops_ratio"], row["fps"]) == (16, None, 0.25, None)
    assert (row["stage_layers"], row["stage_tokens"], row["frame_times_s"]) == ([0, 2], None, None)
    assert row["finished_at"].microsecond == 250


def test_carried_columns_keep_their_types_and_values(job, tmp_path):
    table = pa.table(
        {
            "uri": ["b.mp4", "a.mp4", "b.mp4"],
            "video_id": ["2", "1", "2"],
            "price": [decimal.Decimal("1.50"), None, decimal.Decimal("0.10")],
            "taken": pa.array([1, 2, None], pa.timestamp("ns", "Europe/Berlin")),
            "tags": [["x"], [], None],
            "place": [{"lat": 1.0, "names": ["a"]}, None, {"lat": 2.0, "names": []}],
            "small": pa.array([1, 2, 3], pa.uint8()),
            "colour": pa.array(["red", None, "red"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    plan = planned(job(str(tmp_path / "m.parquet")))
    (shard,) = plan.shards
    written = pq.read_table(commit_shard(plan, shard, []).uri)
    expected = table.take([1, 0, 2])
    for name in ("price", "taken", "tags", "place", "small"):
        assert written[name].type == table[name].type
        assert written[name].to_pylist() == expected[name].to_pylist()
    assert written["colour"].to_pylist() == [None, "red", "red"]


def test_carried_columns_of_odd_types_are_readable_everywhere(job, tmp_path):
    odd = {
        "uuid": pa.array([bytes(range(16)), None], pa.uuid()),
        "text_view": pa.array(["x", None], pa.string_view()),
        "bytes_view": pa.array([b"x", None], pa.binary_view()),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "half": pa.array([np.float16(1.5), None], pa.float16()),
        "time": pa.array([1, None], pa.time64("us")),
        "pair": pa.array([[1, 2], None], pa.list_(pa.int32(), 2)),
        "hollow": pa.array([{"a": None}, None], pa.struct([("a", pa.null())])),
    }
    pq.write_table(pa.table({"uri": ["a.mp4", "b.mp4"], **odd}), tmp_path / "m.parquet")
    plan = planned(job(str(tmp_path / "m.parquet")))
    uri = commit_shard(plan, plan.shards[0], []).uri
    rows = duckdb.sql(f"SELECT {', '.join(odd)} FROM '{uri}' ORDER BY uri").fetchall()
    first = dict(zip(odd, rows[0], strict=True))
    assert (first["uuid"], first["text_view"], first["bytes_view"]) == (bytes(range(16)), "x", b"x")
    assert (first["half"], first["map"], tuple(first["pair"])) == (1.5, {"a": 1}, (1, 2))
    assert rows[1] == (None,) * len(odd)


def test_duckdb_reads_all_runs_at_once(job, write_jsonl, tmp_path):
    manifest = write_jsonl(*({"uri": f"{number}.mp4", "reference": "a dog", "n": number} for number in range(7)))
    plan = planned(job(manifest, "cluster.rows_per_shard=3"))
    for shard in plan.shards:
        commit_shard(plan, shard, [answered(item["item_id"], started_at=NOW) for item in items_of(shard)])
    source = f"read_parquet('{tmp_path}/out/results/**/*.parquet', hive_partitioning = true)"
    columns = "count(*), sum((answer = reference)::INT), sum(n), min(run_date)::VARCHAR"
    assert duckdb.sql(f"SELECT {columns} FROM {source}").fetchall() == [(7, 7, 21, "2026-11-22")]
    kinds = dict(duckdb.sql(f"SELECT column_name, column_type FROM (DESCRIBE SELECT * FROM {source})").fetchall())
    assert kinds["started_at"] == "TIMESTAMP WITH TIME ZONE"
    assert kinds["stage_tokens"] == "BIGINT[]"
    assert kinds["total_ms"] == "DOUBLE"


def test_of_two_answers_to_one_item_the_first_stays(job, write_jsonl):
    plan = planned(job(write_jsonl({"uri": "a.mp4"})))
    (item,) = items_of(plan.shards[0])
    rows = committed_rows(plan, answered(item["item_id"], answer="first"), answered(item["item_id"], answer="second"))
    assert [row["answer"] for row in rows] == ["first"]


def test_committing_again_replaces_the_file(job, write_jsonl, tmp_path):
    plan = planned(job(write_jsonl({"uri": "a.mp4"})))
    (item,) = items_of(plan.shards[0])
    assert committed_rows(plan)[0]["error_code"] == "lost"
    assert committed_rows(plan, answered(item["item_id"]))[0]["answer"] == "a dog"
    assert len(list((tmp_path / "out" / "results").rglob("*.*"))) == 1


def test_a_partial_shard_replaces_its_rows_and_no_others(place, job, write_jsonl):
    manifest = write_jsonl(*({"uri": f"{n}.mp4", "video_id": f"v{n}", "n": n} for n in range(4)))
    plan = planned(job(manifest, f"output={place}/out"))
    (shard,) = plan.shards
    items = [item["item_id"] for item in sorted(items_of(shard), key=lambda item: item["video_id"])]
    commit_shard(plan, shard, [answered(item, answer="old") for item in items[:3]])
    part = subset_shard(plan, shard, KnownItems(from_texts([items[1], items[3]])))
    committed = commit_shard(plan, part, [answered(items[3], answer="new")])
    rows = read_results(plan, shard).to_pylist()
    assert [(row["item_id"], row["answer"], row["n"]) for row in rows] == [
        (items[0], "old", 0),
        (items[1], None, 1),
        (items[2], "old", 2),
        (items[3], "new", 3),
    ]
    assert (committed.uri, committed.rows, committed.error_codes) == (result_uri(plan, shard), 4, {"lost": 1})


@pytest.mark.parametrize("partial", [False, True])
def test_a_write_that_arrives_late_replaces_nothing_newer(bucket, job, write_jsonl, partial):
    plan = planned(job(write_jsonl({"uri": "a.mp4"}), f"output={bucket}/out"))
    (shard,) = plan.shards
    (item,) = [item["item_id"] for item in items_of(shard)]
    if partial:
        commit_shard(plan, shard, [])
        shard = subset_shard(plan, shard, KnownItems(from_texts([item])))
    checks = iter([lambda: commit_shard(plan, shard, [answered(item, answer="newer")]), lost_lease])
    with pytest.raises(ClusterError, match="lease"):  # it was confirmed, and lost before the write went out
        commit_shard(plan, shard, [answered(item, answer="late")], lambda: next(checks)())
    assert [row["answer"] for row in read_results(plan, shard).to_pylist()] == ["newer"]


def lost_lease():
    raise ClusterError("the lease was lost")


def test_whoever_holds_the_lease_keeps_what_a_dead_twin_wrote_late(bucket, job, write_jsonl):
    rows = [{"uri": f"{name}.mp4", "video_id": name} for name in "ab"]
    plan = planned(job(write_jsonl(*rows), f"output={bucket}/out"))
    (shard,) = plan.shards
    one, two = (item["item_id"] for item in sorted(items_of(shard), key=lambda item: item["video_id"]))
    commit_shard(plan, shard, [])

    def again(item):
        return subset_shard(plan, shard, KnownItems(from_texts([item])))

    checks = iter([lambda: commit_shard(plan, again(one), [answered(one, answer="twin's")]), lambda: None])
    committed = commit_shard(plan, again(two), [answered(two, answer="mine")], lambda: next(checks)())
    assert [row["answer"] for row in read_results(plan, shard).to_pylist()] == ["twin's", "mine"]
    assert committed.errors == 0


def test_a_commit_whose_answer_was_lost_is_one(s3_environment, job, write_jsonl):
    s3 = StrictS3()
    with s3.as_endpoint(s3_environment):
        filesystem_for("s3://lost-answers")[0].mkdir("lost-answers")
        plan = planned(job(write_jsonl({"uri": "a.mp4"}), "output=s3://lost-answers/out"))
        s3.lose_answers = True
        assert commit_shard(plan, plan.shards[0], []).rows == 1
        assert read_results(plan, plan.shards[0]).num_rows == 1


def test_a_file_of_an_older_schema_gains_the_columns_that_it_lacks(job, write_jsonl):
    plan = planned(job(write_jsonl({"uri": "a.mp4"}, {"uri": "b.mp4"})))
    (shard,) = plan.shards
    uri = commit_shard(plan, shard, []).uri
    pq.write_table(pq.read_table(uri).drop_columns(["decode_cpu_ms", "quantization"]), uri)
    read = read_results(plan, shard)
    assert read.schema.equals(plan.schema)
    assert read["quantization"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"item_id": "stranger", "status": "ok"}, "does not belong"),
        ({"status": "fine"}, "status"),
        ({"status": "ok", "colour": "red"}, "not a result column: colour"),
    ],
)
def test_rows_that_are_not_the_shard_s_are_a_mistake_of_ours(job, write_jsonl, row, told):
    plan = planned(job(write_jsonl({"uri": "a.mp4"})))
    (shard,) = plan.shards
    (item,) = items_of(shard)
    with pytest.raises(ValueError, match=told):
        commit_shard(plan, shard, [{"item_id": item["item_id"], **row}])
    assert not exists(result_uri(plan, shard))


def test_results_that_cannot_be_written_are_the_user_s_to_mend(job, write_jsonl, tmp_path):
    plan = planned(job(write_jsonl({"uri": "a.mp4"})))
    (tmp_path / "out" / "results").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        commit_shard(plan, plan.shards[0], [])
    filesystem, path = filesystem_for(plan.output)
    assert not [name for name in filesystem.find(path) if name.endswith(".tmp")]
