"""JSONL and CSV manifests: a line that cannot be read stays a row, with what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError, one_line
from pipeline.json_types import NULL, column, merged, settled, type_of
from pipeline.manifest_batches import BatchSource, Problem, is_unicode
from pipeline.manifest_lines import Lines, LineTooLongError, Row, batches, problem

_MOST_COLUMNS = 1000
_MOST_MISFITS = 1000  # rows that bring in too many columns: above it the file is of another kind
_DEEPEST = 100  # levels of lists and objects in each other
_LONGEST_CELL = 16 * 2**20  # characters; Python's csv reader stops at 131,072 unless told otherwise


def open_jsonl(path: Path, uri: str) -> BatchSource:
    """One JSON object a line; blank lines are no rows. Reads the file once for its types, then once for its rows."""
    types: dict[str, pa.DataType | None] = {}
    lines = misfits = 0
    for row, _ in _json_rows(path):
        lines += 1
        if isinstance(row, Problem):
            continue
        if len(types.keys() | row.keys()) > _MOST_COLUMNS:
            misfits += 1
            if misfits > _MOST_MISFITS:
                raise UserError(
                    f"{uri}: more than {_MOST_COLUMNS} different keys: a manifest has the same few in every line"
                )
            continue
        for name, value in row.items():
            types[name] = merged(types.get(name, NULL), type_of(value))
    if not lines:
        raise UserError(f"the manifest {uri} is empty")
    schema = pa.schema([pa.field(name, settled(kind)) for name, kind in types.items()])
    return BatchSource(schema, lambda: batches(_fitting(_json_rows(path), types.keys()), schema, column))


def _fitting(rows: Iterator[Row], names: Set[str]) -> Iterator[Row]:
    for row, size in rows:
        if isinstance(row, dict) and not row.keys() <= names:
            message = f"one of its {len(row)} keys is beyond the {_MOST_COLUMNS} that a manifest may have"
            yield problem(message, json.dumps(row)), size
        else:
            yield row, size


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        lines = Lines(file)
        number = 0
        while True:
            number += 1
            lines.keep()
            try:
                line = next(lines, None)
            except LineTooLongError as error:
                yield problem(f"line {number} is too long: {error} bytes", str(number)), 0
                continue
            if line is None:
                return
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_row(line, number), len(line)


def _json_row(line: bytes, number: int) -> dict[str, Any] | Problem:
    try:
        # Left to itself json guesses the encoding, and lets half of a surrogate pair pass, which no file can hold.
        row = json.loads(line.decode())
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # UnicodeError is a ValueError
        return problem(f"line {number} is not JSON: {one_line(getattr(error, 'msg', str(error)), 100)}", line)
    if not isinstance(row, dict):
        return problem(f"line {number} is not a JSON object", line)
    if line.count(b"[") + line.count(b"{") > _DEEPEST and _is_deep(row):
        return problem(f"line {number} nests lists or objects more than {_DEEPEST} deep", line)
    return row


def _is_deep(row: dict[str, Any]) -> bool:
    level: list[Any] = [row]
    for _ in range(_DEEPEST):
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for values in inner for item in values if isinstance(item, dict | list)]
    return bool(level)


def open_csv(path: Path, uri: str) -> BatchSource:
    """Comma-separated UTF-8 with a header; every column is text, an empty cell null."""
    header = next(_csv_records(path), None)
    if header is None:
        raise UserError(f"the manifest {uri} is empty")
    if isinstance(header, Problem) or not is_unicode(header):
        raise UserError(f"{uri}: the header is not comma-separated UTF-8")
    schema = pa.schema([pa.field(name, pa.string()) for name in header])
    return BatchSource(schema, lambda: batches(_csv_rows(path, header), schema, pa.array))


def _csv_records(path: Path) -> Iterator[list[str] | Problem]:
    """Records, blank lines left out. Of one that is broken the first line is the record, and reading goes on behind it.

    So a quote that is left open swallows no other row. Broken is also a record of several lines
    without as many cells as the header: its quote was closed by that of another row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    width = None
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = Lines(file)
        reader = csv.reader(lines, strict=True)
        while True:
            lines.keep()
            try:
                record = next(reader, None)
            except (csv.Error, LineTooLongError) as error:
                yield problem(f"is not CSV: {one_line(str(error), 100)}", lines.first)
                lines.go_back()
                continue
            if record is None:
                return
            if width not in (None, len(record)) and lines.taken > 1:
                yield problem(f"has {len(record)} cells over {lines.taken} lines, the header has {width}", lines.first)
                lines.go_back()
            elif record:
                width = width or len(record)
                yield record


def _csv_rows(path: Path, header: list[str]) -> Iterator[Row]:
    records = _csv_records(path)
    next(records)
    for number, record in enumerate(records, 1):
        if isinstance(record, Problem):
            yield Problem(f"row {number} {record.message}", record.digest), 0
            continue
        text = ",".join(record)
        if len(record) != len(header):
            yield problem(f"row {number} has {len(record)} cells, the header has {len(header)}", text), len(text)
        elif not is_unicode(record):
            yield problem(f"row {number} is not UTF-8", text), len(text)
        else:
            yield {name: cell or None for name, cell in zip(header, record, strict=True)}, len(text)
