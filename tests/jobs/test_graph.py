from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.collector import Collector
from pipeline.config_load import load_config
from pipeline.errors import ClusterError, RowError
from pipeline.lease import LeaseLost
from pipeline.plan import plan_run
from pipeline.results import blank_row, error_row
from pipeline.stages_tables import GROUP_SCHEMA, pack_answers, read_groups, unpack_answers
from pipeline.storage import write_atomic

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture
def plan_of(tmp_path, write_manifest):
    """A plan over rows of a manifest; its shards hold whole groups of about `rows_per_shard` rows."""

    def plan(rows: list[dict], rows_per_shard: int = 256):
        manifest = write_manifest(rows)
        given = [f"manifest={manifest}", f"output={tmp_path}/out", f"cluster.rows_per_shard={rows_per_shard}"]
        return plan_run(load_config(None, given, "qa"), "run-1", "f" * 12, NOW)

    return plan


def questions(*videos: str, each: int = 1) -> list[dict]:
    return [{"uri": f"/videos/{video}.mp4", "question": f"question {n}"} for video in videos for n in range(each)]


def tasks_of(plan) -> list:
    return [(plan, shard) for shard in plan.shards]


def groups_of(shard) -> list[dict]:
    return read_groups(pa.table({"uri": [shard.uri]})).to_pylist()


def answers_to(shard, **given) -> list[dict]:
    return [
        blank_row(item["item_id"]) | {"status": "ok", "attempts": 1, "shard": group["shard"], "answer": "yes"} | given
        for group in groups_of(shard)
        for item in group["items"]
    ]


def results(tmp_path) -> list[dict]:
    files = sorted((tmp_path / "out" / "results").rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_questions_about_one_video_are_one_group(plan_of):
    [shard] = plan_of(questions("a", "b", each=3)).shards
    rows = read_groups(pa.table({"uri": [shard.uri]}))
    assert rows.schema == GROUP_SCHEMA
    assert [row["uri"] for row in rows.to_pylist()] == ["/videos/a.mp4", "/videos/b.mp4"]
    assert [len(row["items"]) for row in rows.to_pylist()] == [3, 3]
    assert [item["prompt"] for item in rows["items"][0].as_py()] == ["question 0", "question 1", "question 2"]


def test_a_range_is_a_group_of_its_own(plan_of):
    row = questions("a")[0]
    [shard] = plan_of([row, row | {"start_s": 1, "end_s": 2}, row | {"frames": 4}, row]).shards
    told = sorted((g["start_s"] or 0, g["frames"] or 0, len(g["items"])) for g in groups_of(shard))
    assert told == [(0, 0, 2), (0, 4, 1), (1.0, 0, 1)]


def test_refused_rows_enter_no_group(plan_of):
    [shard] = plan_of([*questions("a"), {"uri": "ftp://x/y.mp4", "question": "q"}]).shards
    assert (shard.rows, shard.refused, len(groups_of(shard))) == (2, 1, 1)


def test_a_shard_without_work_is_an_empty_table(plan_of):
    [shard] = plan_of([{"uri": "ftp://x/y.mp4", "question": "q"}]).shards
    assert groups_of(shard) == []


def test_answers_survive_their_packing():
    rows = [blank_row("x") | {"status": "ok", "shard": "s", "started_at": NOW, "stage_tokens": [3, 2]}]
    assert unpack_answers(pack_answers(rows)) == rows
    assert unpack_answers(pack_answers([])) == []


def test_a_shard_is_committed_with_its_last_row_and_not_before(plan_of, tmp_path):
    plan = plan_of(questions("a", "b", "c"), rows_per_shard=2)
    collector = Collector(tasks_of(plan))
    first, second = (answers_to(shard) for shard in plan.shards)
    assert list(collector.add(first[:1])) == []
    assert list(collector.add(second[:0])) == []
    assert results(tmp_path) == []
    [committed] = collector.add(first[1:])
    assert committed.rows == 2
    assert len(results(tmp_path)) == 2
    [committed] = collector.add(second)
    assert (collector.rows, collector.failed, len(results(tmp_path))) == (3, 0, 3)


def test_a_row_that_comes_twice_counts_once(plan_of, tmp_path):
    plan = plan_of(questions("a", "b"))
    collector = Collector(tasks_of(plan))
    rows = answers_to(plan.shards[0])
    assert list(collector.add([rows[0], rows[0]])) == []
    assert len(list(collector.add(rows))) == 1
    assert list(collector.add([rows[1] | {"answer": "late twin"}])) == []
    assert collector.rows == 2
    assert [row["answer"] for row in results(tmp_path)] == ["yes", "yes"]


def test_wholly_refused_shards_are_committed_without_a_graph(plan_of, tmp_path):
    plan = plan_of([{"uri": "ftp://x/y.mp4", "question": "q"}])
    collector = Collector(tasks_of(plan))
    [committed] = collector.commit_refused()
    assert (committed.rows, committed.error_codes) == (1, {"uri_scheme": 1})
    assert (collector.rows, collector.failed) == (1, 1)
    assert list(collector.commit_rest()) == []


def test_rows_that_never_came_are_lost_and_written(plan_of, tmp_path):
    plan = plan_of(questions("a", "b", "c"))
    collector = Collector(tasks_of(plan))
    failure = error_row("", RowError("decode", "truncated", "cut"))
    rows = answers_to(plan.shards[0])
    failed = failure | {"item_id": rows[1]["item_id"], "shard": rows[1]["shard"]}
    assert list(collector.add([rows[0], failed])) == []
    [committed] = collector.commit_rest()
    assert committed.error_codes == {"truncated": 1, "lost": 1}
    assert (collector.rows, collector.failed) == (3, 2)
    assert sorted(str(row["error_code"]) for row in results(tmp_path)) == ["None", "lost", "truncated"]


def test_a_collector_that_takes_no_more_finishes_what_it_has_begun(plan_of, tmp_path):
    plan = plan_of(questions("a", "b", "c", "d"), rows_per_shard=2)
    collector = Collector(tasks_of(plan))
    first, second = (answers_to(shard) for shard in plan.shards)
    assert list(collector.add(first[:1])) == []
    collector.take_no_more()
    assert collector.in_flight
    assert len(list(collector.add([*second, *first[1:]]))) == 1
    assert not collector.in_flight
    assert list(collector.commit_rest()) == []
    assert (collector.rows, collector.total, len(results(tmp_path))) == (2, 4, 2)


def test_nothing_is_written_once_the_lease_is_lost(plan_of, tmp_path):
    def check():
        raise LeaseLost("another run has it")

    plan = plan_of(questions("a"))
    collector = Collector(tasks_of(plan), check)
    with pytest.raises(LeaseLost):
        list(collector.add(answers_to(plan.shards[0])))
    assert results(tmp_path) == []


def test_a_commit_waits_until_the_storage_is_back(plan_of, tmp_path, monkeypatch):
    plan = plan_of(questions("a"))
    failures = [ClusterError("away"), ClusterError("still away")]

    def write(uri, data, version, timeout_s):
        if failures:
            raise failures.pop()
        write_atomic(uri, data)

    monkeypatch.setattr("pipeline.results.replace_whole", write)
    monkeypatch.setattr("pipeline.patience._PAUSE_S", 0.01)
    assert len(list(Collector(tasks_of(plan)).add(answers_to(plan.shards[0])))) == 1
    assert len(results(tmp_path)) == 1
