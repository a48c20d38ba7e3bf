"""Groups as the decoder takes them, and what of the frames that it hands on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline.stages_tables import GROUP_SCHEMA


def item(name: str, **given) -> dict:
    return {
        "item_id": name,
        "video_id": name,
        "prompt": f"about {name}",
        "options": None,
        "retention": None,
        "max_new_tokens": None,
    } | given


def group(uri, items: list[dict], **given) -> dict:
    whole = {"shard": "shard-00000", "group": str(uri), "uri": str(uri), "start_s": None, "end_s": None, "frames": None}
    return whole | {"items": items} | given


def groups(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=GROUP_SCHEMA)


def frames_of(table: pa.Table, row: int = 0) -> np.ndarray:
    return np.frombuffer(table["pixels"][row].as_buffer(), np.uint8).reshape(table["shape"][row].as_py())
