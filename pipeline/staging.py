"""Checked manifest rows on the local disk, in manifest order, readable in any order.

The plan must bring together the rows of one video wherever they stand in the manifest. It keeps
some 50 bytes a row in memory (what they are named by, `order` and their sizes) and the rows in one
Arrow file.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Task
from pipeline.item_ids import ID_ARRAY, item_ids
from pipeline.manifest import Manifest
from pipeline.manifest_batches import Batch
from pipeline.manifest_rows import PlannedRow, Unreadable, plan_row, read_columns, unreadable_row

_STAGED_ROWS = 8192  # rows of a batch in the Arrow file, fewer where they are long
_STAGED_BYTES = 16 * 2**20
_OWN_LENGTH = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
TEXT, INT, FLOAT = pa.string(), pa.int64(), pa.float64()
ROW_FIELDS: tuple[pa.Field, ...] = tuple(
    pa.field(name, kind)
    for name, kind in {
        "row": INT,
        "group": TEXT,
        "video_id": TEXT,
        "uri": TEXT,
        "prompt": TEXT,
        "options": pa.list_(TEXT),
        "start_s": FLOAT,
        "end_s": FLOAT,
        "retention": FLOAT,
        "frames": INT,
        "max_new_tokens": INT,
        "error_stage": TEXT,
        "error_code": TEXT,
        "error_message": TEXT,
    }.items()
)
_PLANNED = ("video_id", "uri", "prompt", "options", "start_s", "end_s", "retention", "frames", "max_new_tokens")


@dataclass(frozen=True)
class Asking:
    """What of a job decides how its manifest rows are read and named."""

    task: Task
    default_prompt: str | None
    fingerprint: str


class StagedRows:
    """The rows of a manifest after `stage`: `len()`, `ids`, `order()` and `take()`.

    `ids` are their item_ids, ID_ARRAY [rows], and `sizes` the bytes of each, uint32 [rows], in manifest order.
    """

    def __init__(
        self, path: Path, lengths: Sequence[int], groups: np.ndarray, ids: np.ndarray, sizes: np.ndarray
    ) -> None:
        """Take the Arrow file at `path` with batches of `lengths` rows; `groups` holds a 64-bit group hash a row."""
        self._path = path
        self._starts = np.cumsum([0, *lengths])
        self._groups = groups
        self.ids = ids
        self.sizes = sizes

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._groups)

    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows, those of one group together, groups and rows by first appearance; and where each group ends.

        Returns int64 [rows] and int64 [groups].
        """
        _, first, member = np.unique(self._groups, return_index=True, return_inverse=True)
        leader = first[member]
        order = np.argsort(leader, kind="stable")
        ends = np.flatnonzero(np.diff(leader[order], append=-1)) + 1
        return order, ends

    def take(self, rows: np.ndarray) -> pa.Table:
        """The rows of these numbers, in this order."""
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        by_batch = np.argsort(batches, kind="stable")
        # Opened anew each time: pages of a map that stays open count as this process's memory until all rows do.
        with pa.memory_map(str(self._path)) as source, pa.ipc.open_file(source) as file:
            pieces = [
                file.get_batch(int(batch)).take(pa.array(rows[places] - self._starts[batch]))
                for batch, places in _runs(batches, by_batch)
            ]
        back = np.empty_like(by_batch)
        back[by_batch] = np.arange(len(rows))
        return pa.Table.from_batches(pieces).take(pa.array(back))


def _runs(batches: np.ndarray, by_batch: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    sorted_batches = batches[by_batch]
    cuts = np.flatnonzero(np.diff(sorted_batches)) + 1
    for places in np.split(by_batch, cuts):
        yield batches[places[0]], places


def stage(manifest: Manifest, asking: Asking, carried: Sequence[tuple[str, pa.Field]], path: Path) -> StagedRows:
    """Check every row of the manifest and write it to `path`.

    `carried` pairs a manifest column with the result field that it fills; those columns travel in
    one struct column `carried`, where no name can collide.
    """
    fields = [*ROW_FIELDS, *([pa.field("carried", pa.struct([field for _, field in carried]))] if carried else [])]
    schema = pa.schema(fields)
    used = read_columns(asking.task, manifest.rows.schema)
    groups, identities, sizes = array("Q"), bytearray(), array("I")

    def checked() -> Iterator[pa.RecordBatch]:
        for batch in manifest.rows.batches():
            planned = list(planned_rows(batch, used, manifest.folder, asking))
            named = [row.identity(asking.fingerprint) for row in planned]
            columns = _row_columns(planned, named, first_row=len(groups))
            groups.extend(int(group[:16], 16) for group in columns["group"])
            identities.extend(bytes.fromhex("".join(named)))
            arrays = [pa.array(columns[field.name], field.type) for field in ROW_FIELDS]
            if carried:
                arrays.append(_struct(batch.rows, carried))
            checked_rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
            sizes.frombytes(_row_sizes(checked_rows).tobytes())
            yield checked_rows

    lengths = []
    with pa.ipc.new_file(str(path), schema) as writer:
        for large in _joined(checked()):
            writer.write_batch(large)
            lengths.append(large.num_rows)
    ids = item_ids(np.frombuffer(identities, ID_ARRAY))
    return StagedRows(path, lengths, np.frombuffer(groups, np.uint64), ids, np.frombuffer(sizes, np.uint32))


def _row_sizes(batch: pa.RecordBatch) -> np.ndarray:
    """The bytes of each row, uint32: its own of texts and binaries, a row's mean of anything else."""
    sizes = np.zeros(batch.num_rows)
    for column in _flat(batch.columns):
        if any(is_kind(column.type) for is_kind in _OWN_LENGTH):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        else:
            sizes += column.nbytes / max(1, batch.num_rows)
    return np.minimum(sizes, np.iinfo(np.uint32).max).astype(np.uint32)


def _flat(columns: Iterable[pa.Array]) -> Iterator[pa.Array]:
    for column in columns:
        if pa.types.is_struct(column.type):
            yield from _flat(column.flatten())
        else:
            yield column


def _joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in fewer batches: a shard of a manifest in no order takes rows out of nearly all of them."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(some.num_rows for some in held) >= _STAGED_ROWS or sum(some.nbytes for some in held) >= _STAGED_BYTES:
            yield pa.concat_batches(held)
            held = []
    if held:
        yield pa.concat_batches(held)


def planned_rows(batch: Batch, used: Sequence[str], folder: str, asking: Asking) -> Iterator[PlannedRow]:
    """Each row of a batch, checked; `used` are the columns that `read_columns` named."""
    cells = {name: _values(batch.rows.column(name)) for name in used}
    for place in range(batch.rows.num_rows):
        if place in batch.problems:
            problem = batch.problems[place]
            yield unreadable_row(problem.message, problem.digest)
        else:
            values = {name: cells[name][place] for name in used}
            yield plan_row(values, folder, asking.task, asking.default_prompt)


def _row_columns(planned: Sequence[PlannedRow], identities: Sequence[str], first_row: int) -> dict[str, Sequence[Any]]:
    told = {name: [getattr(row, name) for row in planned] for name in _PLANNED}
    errors = [row.error for row in planned]
    return {
        "row": range(first_row, first_row + len(planned)),
        "group": [row.group(identity) for row, identity in zip(planned, identities, strict=True)],
        **told,
        "error_stage": [error and error.stage for error in errors],
        "error_code": [error and error.code for error in errors],
        "error_message": [error and error.message for error in errors],
    }


def _values(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        return Unreadable()


def _struct(rows: pa.RecordBatch, carried: Sequence[tuple[str, pa.Field]]) -> pa.StructArray:
    fields = [field for _, field in carried]
    return pa.StructArray.from_arrays([rows.column(name) for name, _ in carried], fields=fields)
