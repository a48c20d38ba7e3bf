import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.manifest import check_manifest, open_manifest
from pipeline.storage import join, write_atomic


def rows_of(manifest):
    return [row for batch in manifest.rows.batches() for row in batch.rows.to_pylist()]


def problems_of(manifest):
    return [problem.message for batch in manifest.rows.batches() for problem in batch.problems.values()]


@pytest.mark.parametrize("form", ["night.parquet", "night.parquet/*", "night.parquet/*.[cj]s*"])
def test_several_manifest_files_are_one_manifest(place, tmp_path, form):
    write_atomic(join(place, "night.parquet", "0.csv"), b"uri,n\na.mp4,1\n")
    write_atomic(join(place, "night.parquet", "1.jsonl"), b'{"uri": "b.mp4", "more": true}\n')
    for unread in ("2.csv", "_SUCCESS", "_temporary/0.csv", ".hidden.csv"):
        write_atomic(join(place, "night.parquet", unread), b"" if unread == "2.csv" else b"uri\nnone.mp4\n")
    check_manifest(join(place, form))
    manifest = open_manifest(join(place, form), tmp_path)
    assert rows_of(manifest) == [{"uri": "a.mp4", "n": "1", "more": None}, {"uri": "b.mp4", "n": None, "more": True}]
    assert manifest.folder == join(place, "night.parquet")


@pytest.mark.parametrize(
    ("one", "other", "kind", "cells"),
    [
        (pa.array([1], pa.int32()), pa.array([2], pa.int64()), pa.int64(), [1, 2]),
        (pa.array([1], pa.uint64()), pa.array([-2], pa.int64()), pa.string(), ["1", "-2"]),
        (pa.array([2**53 + 1]), pa.array([0.5]), pa.string(), [str(2**53 + 1), "0.5"]),
        (pa.array([True]), pa.array(["x"]), pa.string(), ["true", "x"]),
        (pa.array([b"a\xff"]), pa.array([None], pa.string()), pa.string(), ["a\ufffd", None]),
        (pa.array([["a", "b"]]), pa.array(["c|d"]), pa.string(), ['["a", "b"]', "c|d"]),
        (pa.array([{"a": 1}]), pa.array([{"b": b"x"}]), pa.string(), ['{"a": 1}', '{"b": "x"}']),
        (pa.array([[2**61]], pa.list_(pa.timestamp("us"))), pa.array([7]), pa.string(), ["unreadable", "7"]),
    ],
)
def test_a_column_has_the_type_that_the_files_agree_on(tmp_path, one, other, kind, cells):
    for place, column in enumerate((one, other)):
        pq.write_table(pa.table({"uri": ["a.mp4"], "x": column}), tmp_path / f"{place}.parquet")
    manifest = open_manifest(str(tmp_path), tmp_path)
    assert manifest.rows.schema.field("x").type == kind
    assert [row["x"] for row in rows_of(manifest)] == cells


def test_videos_in_a_folder_go_before_manifests(tmp_path):
    for name in ("a.mp4", "m.csv"):
        (tmp_path / name).write_bytes(b"uri\nb.mp4\n")
    assert [row["uri"] for row in rows_of(open_manifest(str(tmp_path), tmp_path))] == [str(tmp_path / "a.mp4")]


def test_a_broken_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("uri\na.mp4\n")
    (tmp_path / "b.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"b\.parquet: not a readable Parquet file"):
        open_manifest(str(tmp_path), tmp_path)


def test_a_video_whose_name_is_not_utf8_stays_a_row(tmp_path):
    (tmp_path / "a.mp4").touch()
    with open(os.fsencode(tmp_path) + b"/b\xff.mp4", "wb"):  # noqa: PTH123 - Path holds no bytes
        manifest = open_manifest(str(tmp_path), tmp_path)
    assert [row["uri"] for row in rows_of(manifest)] == [str(tmp_path / "a.mp4"), None]
    assert "not UTF-8" in problems_of(manifest)[0]
    assert "\\udcff" in problems_of(manifest)[0]
