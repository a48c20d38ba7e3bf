"""A manifest in several files, as Spark and others write one: a single stream of rows with one schema.

A column has the type that all files agree on. Where they disagree, integers become 64-bit and
everything else becomes text, JSON text for what was a list or an object. A column that a file
lacks is null in its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.manifest_batches import Batch, BatchSource


def chained(parts: Sequence[BatchSource]) -> BatchSource:
    """The rows of all parts, one part after the other."""
    types: dict[str, pa.DataType] = {}
    for part in parts:
        for field in part.schema:
            types[field.name] = _common(types.get(field.name, field.type), field.type)
    schema = pa.schema(list(types.items()))
    return BatchSource(schema, lambda: _batches(parts, schema))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    if all(pa.types.is_integer(kind) and kind != pa.uint64() for kind in (one, other)):
        return pa.int64()
    return pa.string()


def _batches(parts: Sequence[BatchSource], schema: pa.Schema) -> Iterator[Batch]:
    for part in parts:
        for batch in part.batches():
            rows = batch.rows
            columns = [
                _as(rows.column(field.name), field.type)
                if field.name in part.schema.names
                else pa.nulls(rows.num_rows, field.type)
                for field in schema
            ]
            yield Batch(pa.RecordBatch.from_arrays(columns, schema=schema), batch.problems)


def _as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if not column.type.num_fields and not _is_binary(column.type):
        return column.cast(kind)
    return pa.array([_text(cell) for cell in column], kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _text(cell: pa.Scalar) -> str | None:
    try:
        value = cell.as_py()
    except (ValueError, OverflowError):  # a date in it that Python cannot hold
        return "unreadable"
    return value if value is None else _plain(value) if isinstance(value, bytes) else json.dumps(value, default=_plain)


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
