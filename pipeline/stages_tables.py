"""The rows between the stages, as Arrow tables with explicit schemas: nothing is guessed from values.

A *group* is one video with one range and one number of frames, together with every question
asked of it: fetched, decoded and encoded once.
"""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.patience import patiently
from pipeline.results import RESULT_SCHEMA
from pipeline.storage import read_bytes

_TIME = pa.timestamp("us", tz="UTC")

ITEM = pa.struct(
    [
        ("item_id", pa.string()),
        ("video_id", pa.string()),
        ("prompt", pa.string()),
        ("options", pa.list_(pa.string())),
        ("retention", pa.float64()),
        ("max_new_tokens", pa.int64()),
    ]
)
GROUP_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("group", pa.string()),
        ("uri", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("frames", pa.int64()),
        ("items", pa.list_(ITEM)),
    ]
)
MEASURED = [
    ("duration_s", pa.float64()),
    ("fps", pa.float64()),
    ("width", pa.int64()),
    ("height", pa.int64()),
    ("codec", pa.string()),
    ("decode_backend", pa.string()),
    ("frame_times_s", pa.list_(pa.float64())),
    ("bytes_fetched", pa.int64()),
    ("fetch_ms", pa.float64()),
    ("decode_ms", pa.float64()),
    ("decode_cpu_ms", pa.float64()),
    ("attempts", pa.int64()),
    ("started_at", _TIME),
]
DECODED_SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("group", pa.string()),
        ("items", pa.list_(ITEM)),
        # large_binary: one video's frames may pass 2 GiB; a buffer of it reaches numpy without a copy.
        ("pixels", pa.large_binary()),
        ("shape", pa.list_(pa.int64())),
        ("decoded_at", _TIME),
        ("error", pa.struct([("stage", pa.string()), ("code", pa.string()), ("message", pa.string())])),
        *MEASURED,
    ]
)
PLAIN_COLUMNS = [name for name in DECODED_SCHEMA.names if name not in ("items", "pixels")]
# A result row on its way: what the driver fills in later is still null.
_ANSWERS = pa.schema([*(field.with_nullable(True) for field in RESULT_SCHEMA), ("shard", pa.string())])


def read_groups(shards: pa.Table) -> pa.Table:
    """One row of GROUP_SCHEMA for each group of the manifest shard `uri`, without its refused rows.

    Waits an outage of the storage out: an error here would end the run.
    """
    of_group = [name for name in GROUP_SCHEMA.names if name != "items"]
    of_item = [field.name for field in ITEM]
    uri = shards["uri"][0].as_py()
    data = patiently(lambda: read_bytes(uri))
    rows = pq.read_table(io.BytesIO(data), columns=[*of_group, *of_item, "error_code"])
    rows = rows.filter(pc.is_null(rows["error_code"]))
    keys = rows["group"].to_pylist()
    starts = pa.array([i for i, key in enumerate(keys) if i == 0 or key != keys[i - 1]], pa.int32())
    items = [rows[name].combine_chunks() for name in of_item]
    grouped = pa.ListArray.from_arrays(
        pa.concat_arrays([starts, pa.array([len(keys)], pa.int32())]),
        pa.StructArray.from_arrays(items, fields=list(ITEM)),
    )
    return pa.table([*(rows[name].take(starts) for name in of_group), grouped], schema=GROUP_SCHEMA)


class GroupReader:
    """`read_groups`, in a process that stays: to start one for each shard takes a second, in which decoders wait."""

    def __call__(self, shards: pa.Table) -> pa.Table:
        """The groups of one shard."""
        return read_groups(shards)


def pack_answers(rows: list[dict[str, Any]]) -> pa.Table:
    """The result rows of a batch as one row: each row of the graph travels by itself, and these should not.

    One binary cell: Ray serializes an Arrow table column by column, which for these sixty takes ten times as long.
    """
    packed = pa.RecordBatch.from_pylist(rows, _ANSWERS).serialize().to_pybytes()
    return pa.table({"answers": pa.array([packed], pa.large_binary())})


def unpack_answers(table: pa.Table) -> list[dict[str, Any]]:
    """What `pack_answers` packed, with the additional key `shard`."""
    batches = (pa.ipc.read_record_batch(cell.as_buffer(), _ANSWERS) for cell in table["answers"])
    return [row for batch in batches for row in batch.to_pylist()]
