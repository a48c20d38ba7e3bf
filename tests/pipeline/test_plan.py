import json
import random
from datetime import datetime, timedelta, timezone
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import resume
from pipeline.config_load import load_config
from pipeline.errors import ClusterError, UserError
from pipeline.ledger import read_ledger
from pipeline.plan import WORK_COLUMNS, cut, make_run_id, plan_run, suitable_rows_per_shard
from pipeline.resume import find_work
from pipeline.run_record import give_up
from pipeline.storage import exists, filesystem_for, join, read_bytes, write_atomic
from tests.pipeline.conftest import NOW

MIB = 2**20


def planned(config, fingerprint="f" * 12):
    return plan_run(config, "run-1", fingerprint, NOW)


def shard_tables(plan):
    return [pq.read_table(pa.BufferReader(read_bytes(shard.uri))) for shard in plan.shards]


def rows_of(plan):
    return [row for table in shard_tables(plan) for row in table.to_pylist()]


def test_a_plan_describes_the_run(job, write_jsonl, tmp_path):
    manifest = write_jsonl({"uri": "a.mp4", "score": 1}, {"uri": "b.mp4"}, {"uri": "gs://x/c.mp4"})
    plan = planned(job(manifest, "cluster.rows_per_shard=2", "pruning.method=uniform"))
    assert (plan.rows, plan.refused, plan.groups) == (3, 1, 2)
    assert [shard.name for shard in plan.shards] == ["shard-00000", "shard-00001"]
    assert [(shard.rows, shard.refused, shard.groups) for shard in plan.shards] == [(2, 0, 2), (1, 1, 0)]
    assert plan.folder == str(tmp_path / "out" / "runs" / "run-1")
    assert plan.run_date == "2026-11-22"
    assert plan.facts["pruning_method"] == "uniform"
    assert plan.schema.field("score").type == pa.int64()


def test_the_run_folder_holds_the_resolved_config(job, write_jsonl):
    config = job(write_jsonl({"uri": "a.mp4"}), "budget.retention=0.3")
    plan = planned(config, "0123456789ab")
    text = read_bytes(join(plan.folder, "config.yaml")).decode()
    assert yaml.safe_load(text)["fingerprint"] == "0123456789ab"
    assert load_config(join(plan.folder, "config.yaml")) == config


def test_the_shards_have_the_documented_columns(job, write_jsonl):
    (table,) = shard_tables(planned(job(write_jsonl({"uri": "a.mp4", "note": "x"}))))
    assert tuple(table.column_names) == (*WORK_COLUMNS, "carried")
    (table,) = shard_tables(planned(job(write_jsonl({"uri": "a.mp4"}))))
    assert tuple(table.column_names) == WORK_COLUMNS


def test_everything_may_lie_on_s3(bucket, job):
    for name in ("a.mp4", "b.mp4"):
        write_atomic(join(bucket, "videos", name), b"")
    write_atomic(join(bucket, "videos", "m.csv"), b"uri,n\na.mp4,1\n../videos/b.mp4,2\n")
    for manifest in (join(bucket, "videos"), join(bucket, "videos", "*.mp4"), join(bucket, "videos", "m.csv")):
        plan = plan_run(job(manifest, f"output={bucket}/out"), make_run_id(NOW), "f", NOW)
        assert [row["uri"] for row in rows_of(plan)] == [f"{bucket}/videos/a.mp4", f"{bucket}/videos/b.mp4"]
        assert plan.folder.startswith(f"{bucket}/out/runs/20261122T031500Z-")


def test_rows_of_one_video_come_together_wherever_they_stand(job, write_jsonl):
    rows = [{"uri": f"{number % 7}.mp4", "question": f"q{number}"} for number in range(70)]
    random.Random(0).shuffle(rows)
    plan = planned(job(write_jsonl(*rows), "cluster.rows_per_shard=25", task="qa"))
    assert [shard.rows for shard in plan.shards] == [20, 20, 20, 10]
    for table in shard_tables(plan):
        groups = table["group"].to_pylist()
        assert sum(one != other for one, other in pairwise(groups)) == len(set(groups)) - 1
    assert len({group for table in shard_tables(plan) for group in set(table["group"].to_pylist())}) == 7
    assert sum(shard.groups for shard in plan.shards) == 7


def test_a_manifest_in_order_stays_in_order(job, write_jsonl):
    plan = planned(
        job(write_jsonl(*({"uri": f"{number}.mp4"} for number in range(1200))), "cluster.rows_per_shard=100")
    )
    assert [row["row"] for row in rows_of(plan)] == list(range(1200))


def test_identical_rows_are_all_kept_under_different_ids(job, write_jsonl):
    manifest = write_jsonl({"uri": "a.mp4"}, {"uri": "b.mp4"}, {"uri": "a.mp4"}, {"uri": "./a.mp4"}, "{bad", "{bad")
    rows = rows_of(planned(job(manifest)))
    assert len({row["item_id"] for row in rows}) == 6
    assert len({row["video_id"] for row in rows if row["error_code"] is None}) == 2


def test_item_ids_repeat_from_run_to_run_and_change_with_the_fingerprint(job, write_jsonl):
    config = job(write_jsonl({"uri": "a.mp4"}, {"uri": "a.mp4"}, "{bad", {"uri": "s3://k:s@b/x"}))
    one, again, other = ([row["item_id"] for row in rows_of(planned(config, mark))] for mark in ("f1", "f1", "f2"))
    assert one == again
    assert not set(one) & set(other)


def test_item_ids_do_not_depend_on_the_size_of_shards_or_the_other_rows(job, write_jsonl):
    rows = [{"uri": f"{number % 5}.mp4"} for number in range(30)]
    small = {row["item_id"] for row in rows_of(planned(job(write_jsonl(*rows), "cluster.rows_per_shard=3")))}
    large = {row["item_id"] for row in rows_of(planned(job(write_jsonl(*rows[::-1], {"uri": "new.mp4"}))))}
    assert len(small) == 30
    assert len(large - small) == 1


def test_a_line_that_cannot_be_read_is_a_refused_row_with_its_place(job, write_jsonl):
    rows = rows_of(planned(job(write_jsonl({"uri": "a.mp4"}, "{broken", {"note": "no uri"}, "[1]"))))
    refused = {row["row"]: row["error_code"] for row in rows if row["error_code"]}
    assert refused == {1: "bad_row", 2: "uri_missing", 3: "bad_row"}
    assert {row["error_stage"] for row in rows} == {None, "manifest"}


def test_options_and_overrides_travel_with_the_row(job, write_jsonl):
    manifest = write_jsonl(
        {"uri": "a.mp4", "question": "what?", "options": ["red", "blue"], "start_s": 1, "end_s": 2.5},
        {"uri": "a.mp4", "question": "what?", "retention": 0.5, "frames": 4, "max_new_tokens": 3},
    )
    one, two = rows_of(planned(job(manifest, task="qa")))
    assert (one["options"], one["start_s"], one["end_s"]) == (["red", "blue"], 1.0, 2.5)
    assert one["prompt"].splitlines()[1:3] == ["A. red", "B. blue"]
    assert (two["retention"], two["frames"], two["max_new_tokens"], two["options"]) == (0.5, 4, 3, None)


def test_columns_that_the_task_does_not_use_are_carried(job, write_jsonl):
    manifest = write_jsonl({"uri": "a.mp4", "question": "what?", "options": ["x", "y"], "row": 7, "status": "new"})
    (row,) = rows_of(planned(job(manifest)))
    assert row["carried"] == {"question": "what?", "options": ["x", "y"], "row": 7, "manifest_status": "new"}
    (row,) = rows_of(planned(job(manifest, task="qa")))
    assert row["carried"] == {"row": 7, "manifest_status": "new"}


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_manifest_leaves_no_run_behind(job, tmp_path, text):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UserError, match="empty"):
        planned(job(str(tmp_path / "m.jsonl")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_header_without_rows_is_empty(job, tmp_path, name):
    if name == "m.csv":
        (tmp_path / name).write_text("uri\n")
    else:
        pq.write_table(pa.table({"uri": pa.array([], pa.string())}), tmp_path / name)
    with pytest.raises(UserError, match="empty"):
        planned(job(str(tmp_path / name)))


def test_secrets_of_the_manifest_reach_no_file_of_the_run(job, write_jsonl):
    manifest = write_jsonl(
        {"uri": "https://user:hunter2secret@host/a.mp4"},
        {"uri": "s3://b/a.mp4?X-Amz-Signature=hunter2secret"},
        {"uri": "a.mp4", "video_id": "https://h/x?token=hunter2secret"},
    )
    plan = planned(job(manifest))
    assert plan.refused == 3
    filesystem, path = filesystem_for(plan.output)
    files = filesystem.find(path)
    assert {file.rpartition("/")[2] for file in files} == {
        "config.yaml",
        "plan.json",
        "item_ids.bin",
        "shard-00000.parquet",
    }
    assert not any("hunter2secret" in json.dumps(row) for row in rows_of(plan))
    assert not any(b"hunter2secret" in filesystem.cat_file(file) for file in files)


def test_the_plan_answers_sql(job, write_jsonl):
    plan = planned(job(write_jsonl({"uri": "a.mp4", "tag": "x"}, {"uri": "b.mp4", "tag": "y"})))
    found = duckdb.sql(f"SELECT carried.tag FROM '{plan.folder}/manifest/*.parquet' ORDER BY row").fetchall()
    assert found == [("x",), ("y",)]


def test_run_ids_sort_by_time_and_differ():
    earlier = NOW.astimezone(timezone(timedelta(hours=9)))
    assert make_run_id(earlier) < make_run_id(NOW + timedelta(seconds=1))
    assert make_run_id(NOW) != make_run_id(NOW)
    assert make_run_id(datetime(2026, 11, 22, 23, 30, tzinfo=timezone(timedelta(hours=-2)))).startswith("20261123T0130")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 20), st.integers(1, 25), st.randoms())
def test_shards_cover_all_rows_once_and_keep_groups_whole(sizes, rows_per_shard, longest, chance):
    ends = np.cumsum(sizes, dtype=np.int64)
    bytes_of_rows = np.array([chance.randrange(10) for _ in range(sum(sizes))], np.uint32)
    shards = list(cut(ends, rows_per_shard, bytes_of_rows, longest, largest=50))
    assert [row for begin, end in shards for row in range(begin, end)] == list(range(sum(sizes)))
    for begin, end in shards:
        assert 0 < end - begin <= max(rows_per_shard, longest)
        is_one_group = np.searchsorted(ends, begin, side="right") == np.searchsorted(ends, end - 1, side="right")
        assert is_one_group or bytes_of_rows[begin:end].sum() <= 50
    cuts_inside = {end for _, end in shards} - set(ends.tolist())
    for place in cuts_inside:  # only a group that is too long for any shard may be cut
        group = int(np.searchsorted(ends, place))
        assert sizes[group] > max(longest, rows_per_shard)


def test_huge_cells_make_smaller_shards(job, tmp_path):
    large = pa.array(["x" * 20 * MIB, None, "y" * 20 * MIB, "z" * 20 * MIB, "w" * 70 * MIB, "v"])
    manifest = pa.table({"uri": [f"{n}.mp4" for n in range(6)], "note": large, "parts": [[b"1"]] * 6})
    pq.write_table(manifest, tmp_path / "m.parquet")
    plan = planned(job(str(tmp_path / "m.parquet")))
    assert [shard.rows for shard in plan.shards] == [4, 1, 1]


@pytest.mark.parametrize(
    ("rows", "each"), [(0, 64), (1, 64), (16_384, 64), (16_385, 128), (100_000, 512), (10**6, 4096), (10**8, 4096)]
)
def test_larger_runs_have_larger_shards(rows, each):
    assert suitable_rows_per_shard(rows) == each


def test_an_output_that_cannot_be_written_is_the_users(job, write_jsonl, tmp_path):
    (tmp_path / "out" / "runs" / "run-1").mkdir(parents=True)
    (tmp_path / "out" / "runs" / "run-1" / "manifest").write_text("in the way")
    config = job(write_jsonl(*({"uri": f"{number}.mp4"} for number in range(100))), "cluster.rows_per_shard=1")
    with pytest.raises(UserError, match="cannot write"):
        planned(config)
    assert not (tmp_path / "out" / "runs" / "run-1" / "plan.json").exists()


URIS = st.sampled_from(["a.mp4", "b.mp4", "./a.mp4", "s3://b/c.mp4", "gs://b/c.mp4", "s3://k:s@b/x", "", None, 5])
ROW = st.fixed_dictionaries(
    {"uri": URIS},
    optional={
        "video_id": st.sampled_from(["v1", "v2", None]),
        "start_s": st.sampled_from([0, 1.5, -1, "x", None]),
        "frames": st.sampled_from([4, 0, None]),
        "retention": st.sampled_from([0.5, 2, None]),
        "note": st.none() | st.text(st.characters(codec="utf-8"), max_size=5) | st.integers(),
    },
)
LINES = st.lists(ROW.map(json.dumps) | st.sampled_from(["{broken", "[]", "null"]), max_size=40)


@settings(max_examples=40, deadline=None)
@given(LINES, st.integers(1, 12))
def test_every_manifest_row_stands_in_the_plan_exactly_once(tmp_path_factory, lines, rows_per_shard):
    folder = tmp_path_factory.mktemp("plan")
    (folder / "m.jsonl").write_text("\n".join(['{"uri": "first.mp4"}', *lines]))
    overrides = [f"manifest={folder}/m.jsonl", f"output={folder}/out", f"cluster.rows_per_shard={rows_per_shard}"]
    plan = planned(load_config(None, overrides, "caption"))
    rows = rows_of(plan)
    assert sorted(row["row"] for row in rows) == list(range(len(lines) + 1))
    assert len({row["item_id"] for row in rows}) == len(rows) == plan.rows
    shards_of_group = {}
    for row in rows:
        if row["error_code"] is None:
            shards_of_group.setdefault((row["uri"], row["start_s"] or 0.0, row["frames"]), set()).add(row["shard"])
    assert all(len(shards) == 1 for shards in shards_of_group.values())
    assert len(shards_of_group) == plan.groups


@pytest.mark.parametrize(
    ("manifest", "output"),
    [
        ("videos", "videos"),
        ("videos", "videos/out"),
        ("out/results", "out"),
        ("videos/**", "videos/out"),
        ("**/*.parquet", "out"),
    ],
)
def test_an_output_whose_files_would_be_rows_of_the_next_night_is_refused(job, tmp_path, place, manifest, output):
    for name in ("videos/a.mp4", "out/results/run_date=2026-11-21/a.parquet"):
        write_atomic(join(place, name), b"")
    with pytest.raises(UserError, match="would become rows"):
        planned(job(join(place, manifest), f"output={join(place, output)}"))
    assert not exists(join(place, output, "runs"))


@pytest.mark.parametrize(
    ("manifest", "output"), [("videos", "videos-out"), ("videos/*.mp4", "videos/out"), ("videos/m.csv", "videos")]
)
def test_an_output_beside_what_the_manifest_takes_is_not_refused(job, tmp_path, manifest, output):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "videos" / "m.csv").write_text("uri\na.mp4\n")
    assert planned(job(f"{tmp_path}/{manifest}", f"output={tmp_path}/{output}")).rows == 1


def test_a_run_whose_lease_was_lost_while_it_was_planned_never_begins(job, write_jsonl, tmp_path):
    def lost():
        raise ClusterError("the lease was lost")

    config = job(write_jsonl({"uri": "a.mp4"}))
    with pytest.raises(ClusterError, match="lease was lost"):
        plan_run(config, "run-1", "f" * 12, NOW, before_write=lost)
    assert not (tmp_path / "out" / "runs" / "run-1" / "plan.json").exists()
    assert read_ledger(config.output, "f" * 12, config.task).runs == ()


def test_a_driver_that_is_taken_for_dead_while_it_plans_cannot_begin(bucket, job, write_jsonl):
    config = job(write_jsonl({"uri": "a.mp4"}), f"output={bucket}/out")
    found = []

    def successor():
        found.append(find_work(config, "f" * 12, NOW, None, lambda: None))

    with pytest.raises(ClusterError, match="given up"):
        plan_run(config, "run-1", "f" * 12, NOW, before_write=successor)
    (run,) = read_ledger(config.output, "f" * 12, config.task).runs
    assert run.plan.run_id == found[0].planned.run_id


def test_a_plan_that_arrives_while_it_is_given_up_counts(bucket, job, write_jsonl, monkeypatch):
    config = job(write_jsonl({"uri": "a.mp4"}), f"output={bucket}/out")
    write_atomic(join(config.output, "runs", "run-1", "config.yaml"), b"")

    def give_up_late(output, run_id):
        if run_id == "run-1" and not exists(join(output, "runs", run_id, "plan.json")):
            planned(config)
        return give_up(output, run_id)

    monkeypatch.setattr(resume, "give_up", give_up_late)
    work = find_work(config, "f" * 12, NOW, None, lambda: None)
    assert work.planned is None
    assert [plan.run_id for plan, _ in work.tasks] == ["run-1"]
