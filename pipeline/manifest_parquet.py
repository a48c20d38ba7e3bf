"""Parquet manifests: streamed, types kept as far as every reader of the results knows them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError, one_line
from pipeline.manifest_batches import BATCH_ROWS, Batch, BatchSource


def open_parquet(path: Path, uri: str) -> BatchSource:
    """The rows of the Parquet file at `path`; `uri` is its name in errors. Raises UserError where it is none."""
    with _readable(uri), _file(path) as file:
        stored = file.schema_arrow
    schema = pa.schema([pa.field(field.name, plain_type(field.type)) for field in stored])
    return BatchSource(schema, lambda: _batches(path, uri, schema))


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
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_field.with_type(plain_type(kind.value_type))
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain_type(field.type)) for field in kind])
    return kind


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri}: not a readable Parquet file: {one_line(str(error), 160)}") from None


def _file(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, arrow_extensions_enabled=False)


def _batches(path: Path, uri: str, schema: pa.Schema) -> Iterator[Batch]:
    with _readable(uri), _file(path) as file:
        for rows in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            columns = [_plain(column, kind) for column, kind in zip(rows.columns, schema.types, strict=True)]
            yield Batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _plain(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if column.type != kind:
        column = column.cast(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:  # bytes that are not UTF-8: Parquet does not check them, readers of the results would
            texts = column.cast(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).to_pylist()
            return pa.array([None if text is None else text.decode("utf-8", "replace") for text in texts], kind)
    return column
