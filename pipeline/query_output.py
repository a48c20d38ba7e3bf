"""Answers of queries as files, written in batches as they come: CSV, JSON or Parquet, local or on S3."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage import write_atomic

Form = Literal["csv", "json", "parquet"]
FORMS: tuple[Form, ...] = ("csv", "json", "parquet")


def form_of(uri: str) -> Form:
    """What the end of a file's name asks for. UserError for any other end."""
    for form in FORMS:
        if uri.lower().endswith(f".{form}"):
            return form
    raise UserError(f"{uri}: say --format, or end the name in .csv, .json or .parquet")


def write_file(uri: str, form: Form, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write an answer to `uri`, whole or not at all; the number of its rows."""
    with tempfile.TemporaryDirectory(prefix="hieravid-query-") as folder:
        file = Path(folder, "answer")
        if form == "parquet":
            rows = _write_parquet(file, schema, batches)
        else:
            with file.open("w", encoding="utf-8", newline="") as stream:
                rows = write_text(stream, form, schema, batches)
        write_atomic(uri, file)
    return rows


def write_text(
    stream: TextIO, form: Literal["csv", "json"], schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> int:
    """Write an answer as CSV, lists in it as JSON, or as a JSON array with a line for each row; the number of rows."""
    return (_write_csv if form == "csv" else _write_json)(stream, schema, batches)


def _write_parquet(file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_csv(stream: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(schema.names)
    return _for_each_row(batches, lambda _, row: writer.writerow(map(_cell, row)))


def _write_json(stream: TextIO, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    def write(number: int, row: tuple[Any, ...]) -> None:
        stream.write(",\n " if number else "\n ")
        stream.write(to_json(dict(zip(schema.names, row, strict=True))))

    stream.write("[")
    rows = _for_each_row(batches, write)
    stream.write("\n]\n" if rows else "]\n")
    return rows


def _for_each_row(batches: Iterable[pa.RecordBatch], action: Callable[[int, tuple[Any, ...]], object]) -> int:
    rows = 0
    for batch in batches:
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            action(rows, row)
            rows += 1
    return rows


def to_json(value: Any) -> str:
    """`value` as JSON on one line; times in ISO form, what JSON has no form for as text."""
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        return to_json(value)
    return value.isoformat() if isinstance(value, date | datetime) else value
