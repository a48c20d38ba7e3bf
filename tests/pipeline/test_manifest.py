import datetime as dt
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.manifest import check_manifest, open_manifest
from pipeline.manifest_batches import BATCH_ROWS
from pipeline.storage import join, write_atomic


def rows_of(manifest):
    return [row for batch in manifest.rows.batches() for row in batch.rows.to_pylist()]


def problems_of(manifest):
    return [problem.message for batch in manifest.rows.batches() for problem in batch.problems.values()]


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_parquet_keeps_its_types(tmp_path):
    table = pa.table(
        {
            "uri": ["a.mp4", "b.mp4"],
            "id": pa.array([1, None], pa.int32()),
            "price": pa.array([decimal.Decimal("1.50"), None]),
            "taken": pa.array([dt.datetime(2026, 1, 1), None], pa.timestamp("ns", "Europe/Berlin")),
            "tags": [["x"], []],
            "place": [{"lat": 1.0}, None],
            "raw": [b"\xff", None],
            "colour": pa.array(["red", "red"]).dictionary_encode(),
            "nothing": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "m.parquet")
    manifest = open_manifest(str(tmp_path / "m.parquet"), tmp_path)
    kinds = {field.name: field.type for field in manifest.rows.schema}
    assert kinds["id"] == pa.int32()
    assert pa.types.is_decimal(kinds["price"])
    assert kinds["taken"] == pa.timestamp("ns", "Europe/Berlin")
    assert pa.types.is_list(kinds["tags"])
    assert pa.types.is_struct(kinds["place"])
    assert kinds["raw"] == pa.binary()
    assert (kinds["colour"], kinds["nothing"]) == (pa.string(), pa.string())
    batches = [batch.rows for batch in manifest.rows.batches()]
    plain = table.set_column(7, "colour", pa.array(["red", "red"])).set_column(8, "nothing", pa.nulls(2, pa.string()))
    assert pa.Table.from_batches(batches).equals(plain)


def test_parquet_text_that_is_not_unicode_is_mended(tmp_path):
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ok\xff\xfe")]
    )
    pq.write_table(pa.table({"uri": ["a", "b"], "note": broken}), tmp_path / "m.parquet")
    assert [row["note"] for row in rows_of(open_manifest(str(tmp_path / "m.parquet"), tmp_path))] == ["ok", "��"]


def test_csv_cells_are_texts_and_empty_ones_null(tmp_path):
    path = written(tmp_path / "m.csv", '\ufeffuri,zip,note\na.mp4,007,"two\nlines, ""quoted"""\n\nb.mp4,,x\n')
    manifest = open_manifest(path, tmp_path)
    assert rows_of(manifest) == [
        {"uri": "a.mp4", "zip": "007", "note": 'two\nlines, "quoted"'},
        {"uri": "b.mp4", "zip": None, "note": "x"},
    ]


def test_csv_rows_that_cannot_be_read_stay_rows(tmp_path):
    path = written(tmp_path / "m.csv", b"uri,note\na.mp4\nb.mp4,x,y\nc.mp4,\xff\nd.mp4,ok\n")
    manifest = open_manifest(path, tmp_path)
    assert [row["uri"] for row in rows_of(manifest)] == [None, None, None, "d.mp4"]
    assert problems_of(manifest) == [
        "row 1 has 1 cells, the header has 2",
        "row 2 has 3 cells, the header has 2",
        "row 3 is not UTF-8",
    ]


def test_csv_cells_may_be_long(tmp_path):
    path = written(tmp_path / "m.csv", f"uri,note\na.mp4,{'x' * 1_000_000}\n")
    assert len(rows_of(open_manifest(path, tmp_path))[0]["note"]) == 1_000_000


def test_jsonl_lines_that_cannot_be_read_stay_rows(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"uri": "a.mp4", "n": 1}',
        b"{broken",
        b"",
        b'"text"',
        b'{"uri": "\xff"}',
        b'{"uri": "\\ud800"}',
        b'{"uri": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"n": ' + b"9" * 5000 + b"}",
        b'{"uri": "b.mp4"}',
    ]
    manifest = open_manifest(written(tmp_path / "m.jsonl", b"\n".join(lines)), tmp_path)
    assert [row["uri"] for row in rows_of(manifest)] == ["a.mp4", *[None] * 7, "b.mp4"]
    assert [message.split(" is ")[0] for message in problems_of(manifest)] == [
        f"line {number}" for number in (2, 4, 5, 6, 7, 8, 9)
    ]


def test_a_folder_and_a_glob_give_a_row_for_each_video(place, tmp_path):
    for name in ("b.MP4", "a.mkv", "a.json", "sub/c.webm", "notes.txt"):
        write_atomic(join(place, "videos", name), b"")
    found = [row["uri"] for row in rows_of(open_manifest(join(place, "videos"), tmp_path))]
    assert found == [join(place, "videos", name) for name in ("a.mkv", "b.MP4", "sub/c.webm")]
    found = [row["uri"] for row in rows_of(open_manifest(join(place, "videos", "*.m*"), tmp_path))]
    assert found == [join(place, "videos", "a.mkv")]


def test_a_remote_manifest_is_read_like_a_local_one(place, tmp_path):
    write_atomic(join(place, "m", "clips.jsonl"), b'{"uri": "a.mp4"}\n')
    manifest = open_manifest(join(place, "m", "clips.jsonl"), tmp_path)
    assert rows_of(manifest) == [{"uri": "a.mp4"}]
    assert manifest.folder == join(place, "m")


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_long_manifests_come_in_batches_and_can_be_read_twice(tmp_path, name):
    count = 2 * BATCH_ROWS + 7
    if name == "m.parquet":
        pq.write_table(pa.table({"uri": [f"{number}.mp4" for number in range(count)]}), tmp_path / name)
    else:
        lines = [f'{{"uri": "{number}.mp4"}}' if name == "m.jsonl" else f"{number}.mp4" for number in range(count)]
        written(tmp_path / name, "\n".join(["uri", *lines] if name == "m.csv" else lines))
    manifest = open_manifest(str(tmp_path / name), tmp_path)
    for _ in range(2):
        assert [batch.rows.num_rows for batch in manifest.rows.batches()] == [BATCH_ROWS, BATCH_ROWS, 7]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.csv", "url,note\na,b\n", "column named uri; its columns: url, note"),
        ("m.csv", "uri,x,x\na,b,c\n", "'x' stands twice"),
        ("m.csv", "", "is empty"),
        ("m.csv", b"\xff\xfe\n", "comma-separated UTF-8"),
        ("m.jsonl", '{"url": "a"}\n', "column named uri"),
        ("m.jsonl", "", "is empty"),
        ("m.jsonl", "\n\n", "is empty"),
        ("m.parquet", "not parquet", "not a readable Parquet file"),
        ("m.parquet", "", "not a readable Parquet file"),
        ("m.txt", "a.mp4", "a manifest is .parquet, .csv, .jsonl, a folder or a glob"),
    ],
)
def test_a_file_that_is_no_manifest_is_one_clear_line(tmp_path, name, content, told):
    path = written(tmp_path / name, content)
    with pytest.raises(UserError) as caught:
        open_manifest(path, tmp_path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parquet_without_uri_is_refused(tmp_path):
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match="column named uri; its columns: path"):
        open_manifest(str(tmp_path / "m.parquet"), tmp_path)


def test_parquet_with_a_nameless_field_is_refused(tmp_path):
    pq.write_table(pa.table({"uri": ["a"], "x": pa.array([[{"": 1}]])}), tmp_path / "m.parquet")
    with pytest.raises(UserError, match="'x' holds a field without a name"):
        open_manifest(str(tmp_path / "m.parquet"), tmp_path)


def test_parquet_that_breaks_off_inside_is_refused(tmp_path):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": [f"{number}.mp4" for number in range(1000)]}), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[10:300] = bytes(290)
    path.write_bytes(content)
    manifest = open_manifest(str(path), tmp_path)
    with pytest.raises(UserError, match="not a readable Parquet file"):
        rows_of(manifest)


def test_a_line_with_too_many_keys_is_a_bad_row_and_not_the_end_of_the_job(tmp_path):
    many = ", ".join(f'"key{number}": 1' for number in range(1200))
    path = written(tmp_path / "m.jsonl", f'{{"uri": "a", {many}}}\n{{"uri": "b", "key7": 1}}\n')
    manifest = open_manifest(path, tmp_path)
    assert rows_of(manifest) == [{"uri": None, "key7": None}, {"uri": "b", "key7": 1}]
    assert "1201 keys" in problems_of(manifest)[0]


def test_urls_in_texts_are_delivered_without_their_secrets(tmp_path):
    link = "s3://b/a?sig=abc"
    table = pa.table({"uri": [link], "prompt": [f"see {link}"], "tags": [[{"link": link, "n": 1}]]})
    pq.write_table(table, tmp_path / "m.parquet")
    (row,) = rows_of(open_manifest(str(tmp_path / "m.parquet"), tmp_path))
    assert row == {"uri": link, "prompt": "see s3://b/a", "tags": [{"link": "s3://b/a", "n": 1}]}


def test_parquet_of_long_rows_comes_in_small_batches(tmp_path):
    table = pa.table(
        {"uri": [f"{number}.mp4" for number in range(40)], "note": [str(n) * 1_000_000 for n in range(40)]}
    )
    pq.write_table(table, tmp_path / "m.parquet")
    batches = [batch.rows for batch in open_manifest(str(tmp_path / "m.parquet"), tmp_path).rows.batches()]
    assert max(rows.num_rows for rows in batches) < 20
    assert pa.Table.from_batches(batches).equals(table)


def test_a_row_per_key_is_refused(tmp_path):
    path = written(tmp_path / "m.jsonl", "\n".join(f'{{"uri": "a", "key{number}": 1}}' for number in range(2500)))
    with pytest.raises(UserError, match="different keys"):
        open_manifest(path, tmp_path)


@pytest.mark.parametrize("missing", ["none.parquet", "none.jsonl", "none", "none/*.mp4"])
def test_a_missing_manifest_is_one_clear_line_before_anything_is_read(place, missing, tmp_path):
    for check in (check_manifest, lambda uri: open_manifest(uri, tmp_path)):
        with pytest.raises(UserError, match=r"not found|no video files"):
            check(join(place, missing))


def test_a_folder_without_videos_is_empty(tmp_path):
    written(tmp_path / "notes.txt", "x")
    with pytest.raises(UserError, match="no video files"):
        check_manifest(str(tmp_path))


def test_what_can_be_opened_passes_the_check(place, tmp_path):
    write_atomic(join(place, "v", "a.mp4"), b"")
    write_atomic(join(place, "m.csv"), b"uri\na\n")
    for uri in (join(place, "v"), join(place, "v", "*.mp4"), join(place, "m.csv")):
        check_manifest(uri)
