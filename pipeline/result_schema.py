"""The columns of a result file: one explicit schema, fixed at plan time. Columns are only ever added."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

SCHEMA_VERSION = "3"  # 2 adds quantization and peak_memory_mb, 3 decode_cpu_ms
VERSION_KEY = b"hieravid.schema_version"

_TEXT, _COUNT, _NUMBER = pa.string(), pa.int64(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")

_COLUMNS: dict[str, pa.DataType] = {
    # identity
    "item_id": _TEXT,
    "run_id": _TEXT,
    "video_id": _TEXT,
    "uri": _TEXT,
    "task": _TEXT,
    "prompt": _TEXT,
    # outcome
    "answer": _TEXT,
    "answer_option": _TEXT,
    "finish_reason": _TEXT,  # stop | length
    "status": _TEXT,  # ok | error
    "error_stage": _TEXT,  # manifest | fetch | decode | encode | generate
    "error_code": _TEXT,  # pipeline.errors.ERROR_CODES
    "error_message": _TEXT,
    "attempts": _COUNT,
    # video
    "duration_s": _NUMBER,
    "fps": _NUMBER,
    "width": _COUNT,
    "height": _COUNT,
    "codec": _TEXT,
    "decode_backend": _TEXT,
    "frames": _COUNT,
    "frame_times_s": pa.list_(_NUMBER),
    "bytes_fetched": _COUNT,  # transferred for this row's video; of one on a local disk its size
    # tokens
    "video_tokens": _COUNT,
    "prompt_tokens": _COUNT,
    "output_tokens": _COUNT,
    "segments": _COUNT,
    "stage_layers": pa.list_(_COUNT),
    "stage_tokens": pa.list_(_COUNT),
    "retention_requested": _NUMBER,
    "retention_achieved": _NUMBER,
    "flops_ratio": _NUMBER,
    "kv_ratio": _NUMBER,
    # latency: attributed shares whose sum over rows is the busy time; total_ms is the row's wall time
    "fetch_ms": _NUMBER,
    "decode_ms": _NUMBER,  # without what of fetch_ms fell into it
    "decode_cpu_ms": _NUMBER,  # CPU time behind decode_ms
    "wait_ms": _NUMBER,
    "vision_ms": _NUMBER,
    "prune_ms": _NUMBER,
    "prefill_ms": _NUMBER,
    "generate_ms": _NUMBER,
    "total_ms": _NUMBER,
    "peak_memory_mb": _NUMBER,  # the device's (on a CPU the process's) peak while the row's batch was answered, MiB
    # provenance
    "model": _TEXT,
    "model_hash": _TEXT,
    "dtype": _TEXT,
    "quantization": _TEXT,  # none | int8 | fp8
    "pruning_method": _TEXT,
    "config_fingerprint": _TEXT,
    "code_version": _TEXT,
    "host": _TEXT,
    "device": _TEXT,
    "started_at": _TIME,
    "finished_at": _TIME,
}
_NEVER_NULL = frozenset({"item_id", "run_id", "task", "status", "attempts", "config_fingerprint", "code_version"})
RESULT_COLUMNS: tuple[str, ...] = tuple(_COLUMNS)
_PARTITION_KEY = "run_date"  # readers make a column of it from the folder's name


def result_schema(carried: Iterable[pa.Field] = ()) -> pa.Schema:
    """The schema of a run's result files: our columns, then the carried ones; its version in the metadata."""
    ours = [pa.field(name, kind, nullable=name not in _NEVER_NULL) for name, kind in _COLUMNS.items()]
    return pa.schema([*ours, *carried], metadata={VERSION_KEY: SCHEMA_VERSION.encode()})


RESULT_SCHEMA = result_schema()


def carried_fields(columns: Iterable[pa.Field]) -> list[tuple[str, pa.Field]]:
    """Pair each carried manifest column with its result field: `manifest_<name>` where the name is taken.

    Names are compared without case, as query engines do.
    """
    columns = list(columns)
    taken = {*RESULT_COLUMNS, _PARTITION_KEY, ""}
    # First those that keep their name, so that a renamed one cannot push them aside.
    paired: dict[str, pa.Field] = {}
    for wanted_again in (False, True):
        for column in columns:
            name = column.name
            if column.name in paired or (not wanted_again and name.casefold() in taken):
                continue
            while name.casefold() in taken:
                name = f"manifest_{name}"
            taken.add(name.casefold())
            paired[column.name] = pa.field(name, column.type)
    return [(column.name, paired[column.name]) for column in columns]
