"""Parquet manifests: streamed, types kept as far as every reader of the results knows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError, one_line
from pipeline.manifest_batches import BATCH_BYTES, BATCH_ROWS, Batch, BatchSource
from pipeline.manifest_clean import changed_texts, mended


def open_parquet(path: Path, uri: str) -> BatchSource:
    """The rows of the Parquet file at `path`; `uri` is its name in errors. Raises UserError where it is none."""
    with _readable(uri), _file(path) as file:
        stored = file.schema_arrow
        rows = _rows_at_once(file.metadata)
    schema = pa.schema([pa.field(field.name, plain_type(field.type)) for field in stored])
    nameless = next((field.name for field in schema if _has_nameless_field(field.type)), None)
    if nameless is not None:
        raise UserError(f"{uri}: the column {nameless!r} holds a field without a name, which not all readers open")
    return BatchSource(schema, lambda: _batches(path, uri, schema, rows))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The same values without encodings, views and extension types, which not all readers and Arrow kernels know."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_null(kind) or kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return plain_type(pa.list_(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), kind.item_field.with_type(plain_type(kind.item_type)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_field.with_type(plain_type(kind.value_type))
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


def _has_nameless_field(kind: pa.DataType) -> bool:
    inner = [kind.field(place) for place in range(kind.num_fields)]
    return any((field.name == "" and pa.types.is_struct(kind)) or _has_nameless_field(field.type) for field in inner)


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    """How many rows make a batch: fewer than usual where those of a row group are large."""
    groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=1)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(largest, 1))))


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names of columns that are not UTF-8
        raise UserError(f"{uri}: not a readable Parquet file: {one_line(str(error), 160)}") from None


def _file(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, arrow_extensions_enabled=False)


def _batches(path: Path, uri: str, schema: pa.Schema, rows_at_once: int) -> Iterator[Batch]:
    with _readable(uri), _file(path) as file:
        for rows in file.iter_batches(batch_size=rows_at_once, use_threads=False):
            columns = [_plain(column, kind) for column, kind in zip(rows.columns, schema.types, strict=True)]
            yield Batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _plain(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        # Arrow's own cast of a view whose last row is null makes an array that it then refuses.
        ends = np.cumsum([0, *pc.fill_null(column.value_lengths(), 0).to_pylist()])
        column = pa.LargeListArray.from_arrays(ends, column.flatten(), mask=column.is_null())
    if column.type != kind:
        column = column.cast(kind)
    # Parquet does not check that texts are UTF-8; readers of the results would.
    clean = changed_texts(column, mended)
    return column if clean is None else clean
