import json

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.item_ids import as_texts
from pipeline.plan import plan_run
from pipeline.provenance import code_version
from pipeline.run_record import load_plan, planned_ids
from pipeline.storage import delete, join, read_bytes, write_atomic
from tests.pipeline.conftest import NOW


@pytest.fixture
def plan(place, job, write_jsonl):
    rows = [{"uri": f"{number}.mp4", "taken": 1.5, "tags": ["x"], "status": "new"} for number in range(5)]
    manifest = write_jsonl(*rows, {"uri": "ftp://x/y.mp4"})
    given = [f"output={place}/out", "cluster.rows_per_shard=2", "pruning.method=uniform"]
    return plan_run(job(manifest, *given), "run-1", "f" * 12, NOW)


def test_a_plan_can_be_taken_up_by_another_process(plan):
    again = load_plan(plan.output, "run-1")
    assert again == plan
    assert again.schema.metadata == plan.schema.metadata
    assert again.schema.field("tags").type == pa.list_(pa.string())
    assert again.facts["code_version"] == code_version()


def test_a_manifest_that_carries_nothing_is_taken_up_too(job, write_jsonl):
    plan = plan_run(job(write_jsonl({"uri": "a.mp4"})), "run-1", "f" * 12, NOW)
    assert load_plan(plan.output, "run-1") == plan


def test_an_output_that_was_moved_is_taken_up_where_it_lies(job, write_jsonl, tmp_path):
    plan = plan_run(job(write_jsonl({"uri": "a.mp4"})), "run-1", "f" * 12, NOW)
    (tmp_path / "out").rename(tmp_path / "moved")
    [shard] = load_plan(str(tmp_path / "moved"), "run-1").shards
    assert shard.uri == plan.shards[0].uri.replace("/out/", "/moved/")
    assert read_bytes(shard.uri)


def test_the_record_tells_what_was_planned(plan):
    told = json.loads(read_bytes(join(plan.folder, "plan.json")))
    assert (told["run_id"], told["task"], told["run_date"]) == ("run-1", "caption", "2026-11-22")
    assert told["manifest"].endswith("/manifest.jsonl")
    assert told["rows"] == 6
    assert told["shards"][-1] == {"name": "shard-00002", "rows": 2, "refused": 1, "groups": 1}


def test_the_items_are_recorded_sorted(plan):
    ids = as_texts(planned_ids(plan))
    assert len(set(ids)) == 6
    assert ids == sorted(ids)


def test_a_run_without_its_record_never_began(plan):
    delete(join(plan.folder, "plan.json"))
    with pytest.raises(UserError, match="never began"):
        load_plan(plan.output, "run-1")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 2}'])
def test_a_record_that_is_none_of_ours_is_named(plan, content):
    write_atomic(join(plan.folder, "plan.json"), content)
    with pytest.raises(UserError, match=r"run-1/plan\.json"):
        load_plan(plan.output, "run-1")


def test_a_damaged_list_of_items_is_named(plan):
    uri = join(plan.folder, "item_ids.bin")
    write_atomic(uri, read_bytes(uri)[:-1])
    with pytest.raises(UserError, match="damaged: 95 bytes for 6 rows"):
        planned_ids(plan)
