"""One Arrow type for a JSON column, found while its values stream by."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

NULL, BOOL, INT, FLOAT, TEXT = pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string()
_LONG = pa.uint64()  # while collecting only: integers that a float could not hold exactly
_MOST_FIELDS = 100  # an object with more keys is a dictionary, not a record: it stays JSON text
_DEEPEST = 8


def type_of(value: Any, depth: int = 0) -> pa.DataType | None:
    """The Arrow type of one JSON value; None where Parquet has none (mixed lists, empty objects, huge integers)."""
    if value is None:
        return NULL
    if isinstance(value, str):
        return TEXT
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return INT if abs(value) <= 2**53 else _LONG if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return FLOAT
    if depth == _DEEPEST:
        return None
    if isinstance(value, list):
        inner: pa.DataType | None = NULL
        for item in value:
            inner = merged(inner, type_of(item, depth + 1))
        return None if inner is None else pa.list_(inner)
    return _struct({key: type_of(item, depth + 1) for key, item in value.items()})


def merged(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    """A type that holds values of both, None where there is none. Integers and floats become floats."""
    if one is other or one is None or other is None:
        return one if one is other else None
    if one == other or other == NULL:
        return one
    if one == NULL:
        return other
    if one in (INT, FLOAT, _LONG) and other in (INT, FLOAT, _LONG):
        return {frozenset({INT, FLOAT}): FLOAT, frozenset({INT, _LONG}): _LONG}.get(frozenset({one, other}))
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = merged(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields: dict[str, pa.DataType | None] = {field.name: field.type for field in one}
        for field in other:
            fields[field.name] = merged(fields.get(field.name, NULL), field.type)
        return _struct(fields)
    return None


def _struct(fields: dict[str, pa.DataType | None]) -> pa.DataType | None:
    # DuckDB opens no file that has a struct with a nameless field.
    if not 0 < len(fields) <= _MOST_FIELDS or None in fields.values() or "" in fields:
        return None
    return pa.struct(list(fields.items()))


def settled(kind: pa.DataType | None) -> pa.DataType:
    """The type a column gets in the end: text where its values conflict or are all null."""
    if kind is None or kind == NULL:
        return TEXT
    if kind == _LONG:
        return INT
    if pa.types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(settled(field.type)) for field in kind])
    return kind


def column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """JSON values as an Arrow array of a settled type; what is no text becomes JSON text in a text column."""
    if kind == TEXT:
        values = [item if item is None or isinstance(item, str) else json.dumps(item) for item in values]
    return pa.array(values, kind)
