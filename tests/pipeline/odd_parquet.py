"""Parquet files with a column of each type that a writer may have chosen."""

from __future__ import annotations

import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.pipeline.manifest_fuzz import SECRET

_LINK = f"https://user:{SECRET}@host/a.mp4"


def _not_utf8() -> pa.Array:
    offsets = pa.array([0, 2, 4], pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ok\xff\xfe")])


ODD_COLUMNS: dict[str, pa.Array] = {
    "text_view": pa.array(["a", None], pa.string_view()),
    "large_text": pa.array(["a", _LINK], pa.large_string()),
    "dictionary": pa.array([_LINK, "b"]).dictionary_encode(),
    "not_utf8": _not_utf8(),
    "list_not_utf8": pa.ListArray.from_arrays([0, 1, 2], _not_utf8()),
    "struct_not_utf8": pa.StructArray.from_arrays([_not_utf8()], ["a"], mask=pa.array([False, True])),
    "list": pa.array([[_LINK, None], None]),
    "large_list": pa.array([None, [_LINK]], pa.large_list(pa.string())),
    "list_view": pa.array([[_LINK], None], pa.list_view(pa.string())),
    "fixed_list": pa.array([None, [1, 2]], pa.list_(pa.int64(), 2)),
    "fixed_list_of_texts": pa.array([[_LINK], None], pa.list_(pa.string(), 1)),
    "list_of_dictionary": pa.ListArray.from_arrays([0, 1, 2], pa.array([_LINK, "y"]).dictionary_encode()),
    "map": pa.array([[("link", _LINK)], None], pa.map_(pa.string(), pa.string())),
    "map_of_lists": pa.array([[(1, [_LINK])], []], pa.map_(pa.int32(), pa.list_(pa.string()))),
    "struct": pa.array([{"a": [{"b": _LINK}], "A": 1}, None]),
    "null": pa.nulls(2),
    "list_of_nulls": pa.array([[None], None], pa.list_(pa.null())),
    "binary": pa.array([b"\xff", None]),
    "large_binary": pa.array([b"\xff", None], pa.large_binary()),
    "binary_view": pa.array([b"\xff", None], pa.binary_view()),
    "fixed_binary": pa.array([b"abc", None], pa.binary(3)),
    "boolean": pa.array([True, None]),
    "tiny_integer": pa.array([-1, None], pa.int8()),
    "huge_integer": pa.array([2**64 - 1, None], pa.uint64()),
    "half": pa.array([1.5, float("nan")], pa.float16()),
    "double": pa.array([float("inf"), float("-inf")]),
    "decimal": pa.array([decimal.Decimal("1.50"), None], pa.decimal256(50, 3)),
    "date": pa.array([2**40, None], pa.int64()).cast(pa.timestamp("s")).cast(pa.date64(), safe=False),
    "day_in_a_far_year": pa.array([2**30, None], pa.int32()).cast(pa.date32()),
    "time_of_nanoseconds": pa.array([1, None], pa.time64("ns")),
    "moment_in_a_far_year": pa.array([2**61, None], pa.timestamp("us", "UTC")),
    "nanoseconds": pa.array([1, None], pa.timestamp("ns", "Europe/Berlin")),
    "duration": pa.array([1, None], pa.duration("ns")),
    "list_of_far_moments": pa.array([[2**61], None], pa.list_(pa.timestamp("us"))),
}
"""Two cells of each type; links in them carry a secret."""


def write_odd(path: Path, name: str, carried_only: bool = False) -> list[str | None]:
    """A manifest whose `note` is that column, and in further rows unless `carried_only` its `start_s` too.

    Returns the error code that each row must get.
    """
    column = ODD_COLUMNS[name]
    sound = {"uri": pa.array(["a.mp4", "b.mp4"]), "note": column}
    if carried_only:
        pq.write_table(pa.table(sound), path)
        return [None, None]
    pq.write_table(pa.table({**sound, "start_s": column}), path)
    good = {
        "half": [None, "bad_row"],
        "decimal": [None, None],
        "null": [None, None],
        "text_view": ["bad_row", None],
        "huge_integer": [None, None],
    }
    return good.get(name) or ["bad_row" if cell else None for cell in column.is_valid().to_pylist()]
