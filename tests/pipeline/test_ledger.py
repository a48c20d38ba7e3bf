import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config_load import load_config
from pipeline.errors import RowError, UserError
from pipeline.item_ids import from_texts
from pipeline.ledger import failed_items, read_ledger
from pipeline.plan import manifest_items, plan_run, subset_shard
from pipeline.results import blank_row, commit_shard, error_row, result_uri
from pipeline.storage import delete, filesystem_for, join, read_bytes, write_atomic
from tests.pipeline.conftest import NOW

MARK = "f" * 12


@pytest.fixture
def start(place, job, write_jsonl):
    """Plan a manifest of these rows as the run `run_id`, after all that the output already holds."""

    def plan(run_id, *rows, mark=MARK, shard=2):
        config = job(write_jsonl(*rows), f"output={place}/out", f"cluster.rows_per_shard={shard}")
        return plan_run(config, run_id, mark, NOW, read_ledger(f"{place}/out", mark, "caption"))

    return plan


@pytest.fixture
def ledger(place):
    return lambda mark=MARK: read_ledger(f"{place}/out", mark, "caption")


def videos(*numbers):
    return [{"uri": f"/v/{number}.mp4"} for number in numbers]


def rows_of(uri):
    return pq.read_table(io.BytesIO(read_bytes(uri))).to_pylist()


def asked(plan):
    return sorted(row["uri"] for shard in plan.shards for row in rows_of(shard.uri))


def commit(plan, *shards):
    for shard in shards or plan.shards:
        answers = [blank_row(row["item_id"]) | {"status": "ok", "attempts": 1} for row in rows_of(shard.uri)]
        commit_shard(plan, shard, answers)


def test_an_output_where_nothing_was_done_has_an_empty_ledger(ledger):
    assert (ledger().runs, ledger().strays, ledger().next_shard) == ((), (), 0)
    assert len(ledger().known_items()) == 0


def test_a_shard_is_open_until_its_result_file_is_there(start, ledger):
    plan = start("run-1", *videos(0, 1, 2, 3, 4))
    commit(plan, plan.shards[1])
    [record] = ledger().runs
    assert record.plan == plan
    assert record.done == plan.shards[1:2]
    assert record.open == (plan.shards[0], plan.shards[2])
    commit(plan)
    assert ledger().runs[0].open == ()
    delete(result_uri(plan, plan.shards[0]))
    assert ledger().runs[0].open == plan.shards[:1]


def test_a_manifest_that_was_planned_is_not_planned_again(start, ledger):
    plan = start("run-1", *videos(0, 1))
    assert start("run-2", *videos(0, 1)) is None
    assert ledger().has_planned(plan.manifest_identity)
    assert [record.plan.run_id for record in ledger().runs] == ["run-1"]


def test_a_new_manifest_adds_what_is_new_in_it(start, ledger):
    first = start("run-1", *videos(0, 1, 2))
    commit(first, first.shards[0])
    second = start("run-2", *videos(5, 2, 0, 3, 1, 4))  # 0 and 1 are committed, 2 stands in an open shard
    assert asked(second) == ["/v/3.mp4", "/v/4.mp4", "/v/5.mp4"]
    assert len(ledger().known_items()) == 6
    assert [shard.name for record in ledger().runs for shard in record.open] == [
        "shard-00001",
        "shard-00002",
        "shard-00003",
    ]
    assert start("run-3", *videos(5, 0, 4)) is None
    third = start("run-3", *videos(5, 0, 4, 6))
    assert (asked(third), third.shards[0].name) == (["/v/6.mp4"], "shard-00004")


def test_one_more_of_the_same_row_is_a_new_row(start):
    start("run-1", *videos(0, 0), "{broken")
    again = start("run-2", *videos(0, 1, 0, 0), "{broken", "{broken")
    rows = [row for shard in again.shards for row in rows_of(shard.uri)]
    assert {row["row"]: row["uri"] for row in rows} == {1: "/v/1.mp4", 3: "/v/0.mp4", 5: None}


def test_another_fingerprint_begins_anew_and_leaves_the_old_runs_alone(start, ledger):
    commit(start("run-1", *videos(0, 1)))
    other = start("run-2", *videos(0, 1), mark="e" * 12)
    assert (other.rows, other.shards[0].name) == (2, "shard-00000")
    commit(other)
    assert [record.plan.run_id for record in ledger().runs] == ["run-1"]
    assert [record.plan.run_id for record in ledger("e" * 12).runs] == ["run-2"]
    assert ledger().strays == ledger("e" * 12).strays == ()


def test_a_run_that_died_while_planning_counts_for_nothing(start, ledger):
    plan = start("run-1", *videos(0, 1))
    delete(join(plan.folder, "plan.json"))
    assert ledger().runs == ()
    assert start("run-2", *videos(0, 1)).rows == 2


def test_results_whose_run_folder_is_gone_are_still_known(start, ledger):
    plan = start("run-1", *videos(0, 1, 2))
    commit(plan)
    filesystem, path = filesystem_for(plan.folder)
    filesystem.rm(path, recursive=True)
    assert ledger().strays == tuple(result_uri(plan, shard) for shard in plan.shards)
    assert asked(start("run-2", *videos(0, 1, 2, 3))) == ["/v/3.mp4"]


@pytest.mark.parametrize("foreign", ["text", "table"])
def test_a_foreign_file_among_the_results_is_named(place, start, foreign):
    sink = io.BytesIO(b"text")
    if foreign == "table":
        pq.write_table(pa.table({"x": [1]}), sink)
    write_atomic(f"{place}/out/results/other.parquet", sink.getvalue())
    with pytest.raises(UserError, match=r"results/other\.parquet is not a result file"):
        start("run-1", *videos(0))


def test_failed_items_are_those_that_could_turn_out_otherwise(start):
    plan = start("run-1", *videos(0, 1, 2), {"uri": "ftp://x/y.mp4"}, shard=10)
    [shard] = plan.shards
    answered, lost, slow = [row["item_id"] for row in rows_of(shard.uri) if row["error_code"] is None]
    rows = [
        blank_row(answered) | {"status": "ok", "attempts": 1},
        error_row(slow, RowError("decode", "decode_timeout", "slow")),
    ]
    commit_shard(plan, shard, rows)

    def found(codes=None):
        failed = failed_items(plan, shard, codes).contains(from_texts([answered, lost, slow]))
        return failed.tolist()

    assert found() == [False, True, True]
    assert found({"decode_timeout"}) == [False, False, True]
    assert found({"uri_scheme"}) == [False, False, False]
    retry = subset_shard(plan, shard, failed_items(plan, shard))
    assert (retry.name, retry.rows, retry.refused, retry.groups, retry.partial) == (shard.name, 2, 0, 2, True)
    assert {row["item_id"] for row in rows_of(retry.uri)} == {lost, slow}
    assert subset_shard(plan, shard, failed_items(plan, shard, {"not_found"})) is None


def test_a_manifest_names_its_items_whatever_was_done_before(start, job, write_jsonl, place):
    plan = start("run-1", *videos(0, 1, 2), {"uri": "ftp://x/y.mp4"}, shard=10)
    items = manifest_items(job(write_jsonl(*videos(1, 7)), f"output={place}/out"), MARK)
    again = subset_shard(plan, plan.shards[0], items)
    assert [row["uri"] for row in rows_of(again.uri)] == ["/v/1.mp4"]
    assert rows_of(again.uri) == [row for row in rows_of(plan.shards[0].uri) if row["uri"] == "/v/1.mp4"]


def items_named_by(config):
    """The items of a manifest as a first run on an empty output plans them."""
    alone = config.model_copy(update={"output": f"{config.output}-alone"})
    return {row["item_id"] for shard in plan_run(alone, "alone", MARK, NOW).shards for row in rows_of(shard.uri)}


ROW = st.sampled_from([*({"uri": f"/v/{number % 6}.mp4", "start_s": number // 6} for number in range(18)), {"uri": 5}])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(ROW, min_size=1, max_size=25), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_over_all_runs_every_item_is_planned_once_and_none_is_forgotten(tmp_path_factory, nights, chance):
    folder = tmp_path_factory.mktemp("nights")
    expected = set()
    for number, rows in enumerate(nights):
        manifest = folder / f"{number}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = load_config(
            None, [f"manifest={manifest}", f"output={folder}/out", "cluster.rows_per_shard=4"], "caption"
        )
        plan_run(config, f"run-{number}", MARK, NOW, read_ledger(f"{folder}/out", MARK, "caption"))
        expected |= items_named_by(config)
        for record in read_ledger(f"{folder}/out", MARK, "caption").runs:
            for shard in record.open:
                if chance.random() < 0.5:
                    commit_shard(record.plan, shard, [])
    ledger = read_ledger(f"{folder}/out", MARK, "caption")
    planned = [row["item_id"] for record in ledger.runs for shard in record.plan.shards for row in rows_of(shard.uri)]
    assert sorted(planned) == sorted(expected)
    names = [shard.name for record in ledger.runs for shard in record.plan.shards]
    assert len(set(names)) == len(names)
