"""Result files: one row for each manifest row of a shard, written whole."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.conditional_write import VersionConflict, read_versioned, replace_whole
from pipeline.errors import ClusterError, RowError, UserError
from pipeline.prompts import parse_option
from pipeline.result_schema import (
    RESULT_COLUMNS,
    RESULT_SCHEMA,
    SCHEMA_VERSION,
    VERSION_KEY,
    carried_fields,
    result_schema,
)
from pipeline.storage import join, read_bytes

if TYPE_CHECKING:
    from pipeline.run_record import Plan, Shard

__all__ = [
    "RESULT_COLUMNS",
    "RESULT_SCHEMA",
    "SCHEMA_VERSION",
    "VERSION_KEY",
    "Committed",
    "blank_row",
    "carried_fields",
    "commit_shard",
    "describe",
    "error_row",
    "parse_option",
    "read_results",
    "result_schema",
    "result_uri",
]

_REQUEST_S = 120.0  # for one result file, the client's own retries included
_FROM_MANIFEST = ("item_id", "video_id", "uri", "prompt")


@dataclass(frozen=True)
class Committed:
    """A result file: whose it is, where it is, how many of its rows failed and why, and what was written."""

    run_id: str
    shard: str
    uri: str
    rows: int
    errors: int
    error_codes: dict[str, int]
    table: pa.Table


def blank_row(item_id: str) -> dict[str, Any]:
    """A result row of which nothing is known but its item: every column, None."""
    return {**dict.fromkeys(RESULT_COLUMNS), "item_id": item_id}


def error_row(item_id: str, error: RowError, attempts: int = 1) -> dict[str, Any]:
    """The result row of a failure; what was measured before it may be added."""
    told = {"error_stage": error.stage, "error_code": error.code, "error_message": error.message}
    return {**blank_row(item_id), **told, "status": "error", "attempts": attempts}


def result_uri(plan: Plan, shard: Shard) -> str:
    """Where the results of a shard are committed; the shard is done when this file exists."""
    return join(plan.output, "results", f"run_date={plan.run_date}", f"{plan.run_id}-{shard.name}.parquet")


def commit_shard(
    plan: Plan, shard: Shard, rows: Iterable[Mapping[str, Any]], before_write: Callable[[], None] | None = None
) -> Committed:
    """Write the result file of `shard` atomically, sorted by video_id, one row for each manifest row.

    `rows` need `item_id`, `status` and what was measured; a missing key, None or NaN is null, and
    times are UTC. Identity, carried columns and `plan.facts` are filled in. Rows that were refused
    at the manifest stage become their error rows, and rows without a result become error rows with
    code `lost`. Of two results of one item the first stays. The rows of a partial shard take the
    places of the earlier ones in the file that is there. `before_write` is called when nothing is
    left to do but to write, and raises where another run may have the output. On S3 only the file that
    was seen before that call is replaced: a write that arrives late finds a newer one and fails. Raises
    ValueError for an item or a column that is not the shard's, UserError or ClusterError where the file
    cannot be written.
    """
    items = pq.read_table(io.BytesIO(read_bytes(shard.uri)))
    items = items.take(pc.sort_indices(items, sort_keys=[("video_id", "ascending"), ("row", "ascending")]))
    found = _by_item(rows, set(items["item_id"].to_pylist()))
    refusals = zip(*(items[name].to_pylist() for name in ("error_stage", "error_code", "error_message")), strict=True)
    complete = [
        found.get(item_id) or _unanswered(item_id, *refusal)
        for item_id, refusal in zip(items["item_id"].to_pylist(), refusals, strict=True)
    ]
    answers = _table(plan, items, complete)
    uri = result_uri(plan, shard)
    found = read_versioned(uri, _REQUEST_S) if shard.partial else None
    if shard.partial and found is None:
        raise UserError(f"cannot read {uri}: not found")
    while True:
        table = _replaced(_in_schema(plan, found.data), answers) if shard.partial and found else answers
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        if before_write is not None:
            before_write()
        seen = found
        try:
            replace_whole(uri, sink.getvalue(), seen and seen.version, _REQUEST_S)
            return describe(plan, shard, table)
        except VersionConflict:
            found = read_versioned(uri, _REQUEST_S)
        if found is not None and found.data == sink.getvalue():  # it was written, and only the answer was lost
            return describe(plan, shard, table)
        if (found and found.version) == (seen and seen.version):
            raise ClusterError(f"cannot write {uri}: the storage reports a conflict where there is none")


def describe(plan: Plan, shard: Shard, table: pa.Table) -> Committed:
    """What is told of the result file of `shard`, which holds `table`."""
    failed = table["error_code"].filter(pc.equal(table["status"], "error"))
    codes = Counter(failed.to_pylist())
    return Committed(
        plan.run_id, shard.name, result_uri(plan, shard), table.num_rows, codes.total(), dict(codes), table
    )


def read_results(plan: Plan, shard: Shard) -> pa.Table:
    """The rows of a committed shard in the run's schema: a column that an older version did not write is null."""
    return _in_schema(plan, read_bytes(result_uri(plan, shard)))


def _in_schema(plan: Plan, data: bytes) -> pa.Table:
    stored = pq.read_table(io.BytesIO(data))
    columns = [
        stored[field.name] if field.name in stored.column_names else pa.nulls(stored.num_rows, field.type)
        for field in plan.schema
    ]
    return pa.table(columns, schema=plan.schema)


def _replaced(earlier: pa.Table, again: pa.Table) -> pa.Table:
    """`earlier` with the rows of `again` in the places of those of the same item."""
    places = {item_id: earlier.num_rows + place for place, item_id in enumerate(again["item_id"].to_pylist())}
    chosen = [places.get(item_id, place) for place, item_id in enumerate(earlier["item_id"].to_pylist())]
    return pa.concat_tables([earlier, again]).take(pa.array(chosen, pa.int64()))


def _by_item(rows: Iterable[Mapping[str, Any]], known: set[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        if row["item_id"] not in known:
            raise ValueError(f"item {row['item_id']!r} does not belong to the shard")
        if unknown := row.keys() - set(RESULT_COLUMNS):
            raise ValueError(f"not a result column: {', '.join(sorted(unknown))}")
        if row.get("status") not in ("ok", "error"):
            raise ValueError(f"item {row['item_id']!r} has the status {row.get('status')!r}")
        found.setdefault(row["item_id"], row)
    return found


def _unanswered(item_id: str, stage: str | None, code: str | None, message: str | None) -> dict[str, Any]:
    if stage is None or code is None:
        return error_row(item_id, RowError("generate", "lost", "no answer came back from the workers"))
    return error_row(item_id, RowError(stage, code, message or ""), attempts=0)


def _table(plan: Plan, items: pa.Table, rows: list[Mapping[str, Any]]) -> pa.Table:
    columns: list[pa.Array | pa.ChunkedArray] = []
    for field in plan.schema:
        if field.name in _FROM_MANIFEST:
            columns.append(items[field.name])
        elif field.name in RESULT_COLUMNS:
            default = plan.facts.get(field.name)
            cells = [_cell(row.get(field.name), field.type) for row in rows]
            columns.append(pa.array([default if cell is None else cell for cell in cells], field.type))
        else:
            columns.append(pc.struct_field(items["carried"], field.name))
    return pa.table(columns, schema=plan.schema)


def _cell(value: Any, kind: pa.DataType) -> Any:
    """A value as Arrow takes it. On the way through a data frame, missing becomes NaN and integers become floats."""
    if pa.types.is_list(kind):
        return None if value is None or np.ndim(value) == 0 else [_cell(item, kind.value_type) for item in value]
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return None
    if pa.types.is_integer(kind):
        return int(value)
    return float(value) if pa.types.is_floating(kind) else value
