"""Lines of a text manifest, none of which can fill the memory, and the batches that they become."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any, AnyStr, Generic

import pyarrow as pa

from pipeline.manifest_batches import BATCH_BYTES, BATCH_ROWS, Batch, Problem

LONGEST_LINE = 64 * 2**20  # bytes of JSONL, characters of CSV
_ENDS = ("\n", "\r", b"\n")
Row = tuple[dict[str, Any] | Problem, int]  # a row or what is wrong with it, and its size


class LineTooLongError(Exception):
    """A line of more than `longest` bytes or characters; reading can go on behind it."""


class Lines(Generic[AnyStr]):
    """The lines of a file, of which those since the last `keep()` can be gone back to."""

    def __init__(self, file: IO[AnyStr], longest: int = LONGEST_LINE) -> None:
        """Begin with the file's next line. A line longer than `longest` raises LineTooLongError in its place."""
        self._file = file
        self._longest = longest
        self._waiting: deque[AnyStr | None] = deque()  # None is a line that was too long
        self._taken: list[AnyStr | None] = []

    def __iter__(self) -> Iterator[AnyStr]:
        """Itself."""
        return self

    def __next__(self) -> AnyStr:
        """The next line with its end."""
        line = self._waiting.popleft() if self._waiting else self._read()
        self._taken.append(line)
        if line is None:
            raise LineTooLongError(f"longer than {self._longest}")
        return line

    def _read(self) -> AnyStr | None:
        line = part = self._file.readline(self._longest)
        if not line:
            raise StopIteration
        while len(part) == self._longest and part[-1:] not in _ENDS:
            part = self._file.readline(self._longest)
        return line if part is line else None

    @property
    def taken(self) -> int:
        """How many lines were taken since the last `keep()`."""
        return len(self._taken)

    @property
    def first(self) -> AnyStr | None:
        """The first line since the last `keep()`; None where it was too long."""
        return self._taken[0]

    def keep(self) -> None:
        """What was taken so far is done with."""
        self._taken.clear()

    def go_back(self) -> None:
        """Continue behind the first line that was taken since the last `keep()`."""
        self._waiting.extendleft(reversed(self._taken[1:]))
        self._taken.clear()


def problem(message: str, text: str | bytes | None) -> Problem:
    """A row that cannot be read, known by its text."""
    content = text.encode(errors="surrogateescape") if isinstance(text, str) else text or b""
    return Problem(message, hashlib.sha256(content).hexdigest())


def batches(
    rows: Iterator[Row], schema: pa.Schema, to_array: Callable[[list[Any], pa.DataType], pa.Array]
) -> Iterator[Batch]:
    """Collect rows into batches of at most BATCH_ROWS rows and about BATCH_BYTES bytes."""
    pending: list[dict[str, Any] | Problem] = []
    size = 0

    def closed() -> Batch:
        cells = [row if isinstance(row, dict) else {} for row in pending]
        columns = [to_array([row.get(field.name) for row in cells], field.type) for field in schema]
        problems = {place: row for place, row in enumerate(pending) if isinstance(row, Problem)}
        return Batch(pa.RecordBatch.from_arrays(columns, schema=schema), problems)

    for row, length in rows:
        pending.append(row)
        size += length
        if len(pending) == BATCH_ROWS or size >= BATCH_BYTES:
            yield closed()
            pending, size = [], 0
    if pending:
        yield closed()
