"""No manifest is too odd: each row is planned or refused with its code, none is lost, and no secret is kept."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.plan import plan_run
from pipeline.results import commit_shard
from pipeline.storage import filesystem_for
from tests.pipeline.conftest import NOW
from tests.pipeline.manifest_fuzz import KINDS, MEGA_ROWS, SECRET, fuzzed, write_csv, write_jsonl
from tests.pipeline.odd_parquet import ODD_COLUMNS, write_odd


def plan_of(job, manifest):
    overrides = ("generation.prompt=What happens?", "cluster.rows_per_shard=200")
    return plan_run(job(str(manifest), *overrides, task="qa"), "run-1", "f" * 12, NOW)


def rows_of(plan):
    return [row for shard in plan.shards for row in pq.read_table(shard.uri).drop_columns("carried").to_pylist()]


def check_plan(plan, codes):
    """All that must hold for the plan of a manifest whose rows get these `codes`, in manifest order."""
    rows = rows_of(plan)
    assert sorted(row["row"] for row in rows) == list(range(len(codes)))
    assert len({row["item_id"] for row in rows}) == len(rows) == plan.rows
    found = {row["row"]: row["error_code"] for row in rows}
    assert [found[number] for number in range(len(codes))] == codes
    firsts = {}
    for row in rows:
        firsts.setdefault(row["group"], row["row"])
    places = [(firsts[row["group"]], row["row"]) for row in rows]
    assert places == sorted(places)


def check_files(plan):
    """Every file of the run opens in other programs, gives one result a row, and holds no secret."""
    for shard in plan.shards:
        commit_shard(plan, shard, [])
    filesystem, output = filesystem_for(plan.output)
    for path in filesystem.find(output):
        if path.endswith(".parquet"):
            sink = pa.BufferOutputStream()
            pa.ipc.new_stream(sink, (table := pq.read_table(path)).schema).write_table(table)
            assert duckdb.sql(f"SELECT * FROM '{path}'").to_arrow_table().num_rows == table.num_rows
            content = sink.getvalue().to_pybytes()  # texts as they are, where a Parquet file has them compressed
        else:
            content = filesystem.cat_file(path)
        assert SECRET.encode() not in content
    results = f"read_parquet('{output}/results/*/*.parquet')"
    counted = duckdb.sql(f"SELECT error_code = 'lost', count(*) FROM {results} GROUP BY 1").fetchall()
    assert {True: 0, False: 0, **dict(counted)} == {True: plan.rows - plan.refused, False: plan.refused}


def check_format(kind, count, seed, job, tmp_path):
    kinds, write = KINDS[kind]
    rows = fuzzed(kinds, count, seed)
    write(tmp_path / f"m.{kind}", rows)
    plan = plan_of(job, tmp_path / f"m.{kind}")
    check_plan(plan, [row.code for row in rows])
    check_files(plan)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_row_is_planned_or_refused_with_its_code(kind, job, tmp_path):
    check_format(kind, 400, 0, job, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_thousand_hostile_rows(kind, seed, job, tmp_path):
    check_format(kind, 10_000, seed, job, tmp_path)


@pytest.mark.parametrize("name", ODD_COLUMNS)
def test_parquet_columns_of_any_type_are_read(name, job, tmp_path):
    codes = write_odd(tmp_path / "m.parquet", name)
    plan = plan_of(job, tmp_path / "m.parquet")
    check_plan(plan, codes)
    check_files(plan)


def check_folder(count, seed, job, folder, huge):
    """Files of every format and of all odd types as one manifest."""
    codes = []
    (folder / "parts").mkdir()
    for place, name in enumerate(ODD_COLUMNS):
        codes += write_odd(folder / "parts" / f"a{place:02d}.parquet", name, carried_only=True)
    for place, (kind, (kinds, write)) in enumerate(KINDS.items()):
        rows = fuzzed(kinds, count, seed, huge)
        write(folder / "parts" / f"b{place}.{kind}", rows)
        codes += [row.code for row in rows]
    write_csv(folder / "parts" / "c.csv", [])
    write_jsonl(folder / "parts" / "_temporary.jsonl", [])
    plan = plan_of(job, folder / "parts")
    check_plan(plan, codes)
    check_files(plan)


def test_files_of_a_folder_may_disagree_about_every_column(job, tmp_path):
    check_folder(300, 0, job, tmp_path, huge=())


@pytest.mark.soak
def test_ten_thousand_hostile_rows_of_a_folder(job, tmp_path):
    check_folder(3300, 1, job, tmp_path, huge=MEGA_ROWS)
