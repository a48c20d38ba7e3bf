"""JSONL and CSV manifests: a line that cannot be read stays a row, with what is wrong with it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError, one_line
from pipeline.json_types import NULL, column, merged, settled, type_of
from pipeline.manifest_batches import BATCH_BYTES, BATCH_ROWS, Batch, BatchSource, Problem

_MOST_COLUMNS = 1000
_LONGEST_CELL = 16 * 2**20  # characters; Python's csv reader stops at 131,072 unless told otherwise
Line = tuple[dict[str, Any] | Problem, int]  # a row or what is wrong with it, and its size


def open_jsonl(path: Path, uri: str) -> BatchSource:
    """One JSON object a line; blank lines are no rows. Reads the file once for its types, then once for its rows."""
    types: dict[str, pa.DataType | None] = {}
    lines = 0
    for row, _ in _json_lines(path):
        lines += 1
        if isinstance(row, dict):
            for name, value in row.items():
                types[name] = merged(types.get(name, NULL), type_of(value))
        if len(types) > _MOST_COLUMNS:
            raise UserError(
                f"{uri}: more than {_MOST_COLUMNS} different keys: a manifest has the same few in every line"
            )
    if not lines:
        raise UserError(f"the manifest {uri} is empty")
    schema = pa.schema([pa.field(name, settled(kind)) for name, kind in types.items()])
    return BatchSource(schema, lambda: _batches(_json_lines(path), schema, column))


def _json_lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_row(line, number), len(line)


def _json_row(line: bytes, number: int) -> dict[str, Any] | Problem:
    try:
        row = json.loads(line)
        if b"\\u" in line:  # half of a surrogate pair passes as JSON, but no file can hold it
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        return _problem(f"line {number} is not JSON: {one_line(getattr(error, 'msg', str(error)), 100)}", line)
    if not isinstance(row, dict):
        return _problem(f"line {number} is not a JSON object", line)
    return row


def _problem(message: str, text: bytes) -> Problem:
    return Problem(message, hashlib.sha256(text).hexdigest())


def open_csv(path: Path, uri: str) -> BatchSource:
    """Comma-separated UTF-8 with a header; every column is text, an empty cell null."""
    header = next(_csv_records(path), None)
    if header is None:
        raise UserError(f"the manifest {uri} is empty")
    if isinstance(header, csv.Error) or not _is_unicode(header):
        raise UserError(f"{uri}: the header is not comma-separated UTF-8")
    schema = pa.schema([pa.field(name, pa.string()) for name in header])
    return BatchSource(schema, lambda: _batches(_csv_rows(path, header), schema, pa.array))


def _csv_records(path: Path) -> Iterator[list[str] | csv.Error]:
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                yield error
                continue
            if record is None:
                return
            if record:  # a blank line is no row
                yield record


def _csv_rows(path: Path, header: list[str]) -> Iterator[Line]:
    records = _csv_records(path)
    next(records)
    for number, record in enumerate(records, 1):
        if isinstance(record, csv.Error):
            yield _problem(f"row {number} is not CSV: {one_line(str(record), 100)}", str(number).encode()), 0
            continue
        text = ",".join(record)
        if len(record) != len(header):
            message = f"row {number} has {len(record)} cells, the header has {len(header)}"
            yield _problem(message, text.encode(errors="replace")), len(text)
        elif not _is_unicode(record):
            yield _problem(f"row {number} is not UTF-8", text.encode(errors="surrogateescape")), len(text)
        else:
            yield {name: cell or None for name, cell in zip(header, record, strict=True)}, len(text)


def _is_unicode(cells: Iterable[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _batches(
    lines: Iterator[Line], schema: pa.Schema, to_array: Callable[[list[Any], pa.DataType], pa.Array]
) -> Iterator[Batch]:
    """Collect lines into batches of at most BATCH_ROWS rows and about BATCH_BYTES bytes."""
    rows: list[dict[str, Any] | Problem] = []
    size = 0

    def closed() -> Batch:
        cells = [row if isinstance(row, dict) else {} for row in rows]
        columns = [to_array([row.get(field.name) for row in cells], field.type) for field in schema]
        problems = {place: row for place, row in enumerate(rows) if isinstance(row, Problem)}
        return Batch(pa.RecordBatch.from_arrays(columns, schema=schema), problems)

    for row, length in lines:
        rows.append(row)
        size += length
        if len(rows) == BATCH_ROWS or size >= BATCH_BYTES:
            yield closed()
            rows, size = [], 0
    if rows:
        yield closed()
