"""The plan step: a manifest cut into shards, each a Parquet file in the run folder.

One shard is one unit of commit: it becomes one result file of the same name. Rows of one video,
range and frame count stay together, so that they are fetched, decoded and encoded once. Every
manifest row stands in exactly one shard, also one that was refused.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import JobConfig, Task
from pipeline.config_load import dump_config
from pipeline.errors import UserError
from pipeline.manifest import open_manifest
from pipeline.manifest_rows import read_columns
from pipeline.provenance import code_version
from pipeline.result_schema import carried_fields, result_schema
from pipeline.staging import ROW_FIELDS, Asking, StagedRows, stage
from pipeline.storage import absolute, join, write_atomic

_LONGEST_SHARD = 65_536  # rows: one video with more questions than this is cut, and decoded once for each piece
WORK_COLUMNS: tuple[str, ...] = (
    "item_id",
    "shard",
    *(field.name for field in ROW_FIELDS if field.name != "identity"),
)
"""The columns of a manifest shard that the graph reads; besides them there is only `carried`."""


@dataclass(frozen=True)
class Shard:
    """One manifest shard. `refused` of its `rows` need no work; `groups` counts what is to be decoded."""

    name: str
    uri: str
    rows: int
    refused: int
    groups: int


@dataclass(frozen=True)
class Plan:
    """A run, ready to start. `schema` is that of its result files, `facts` what is the same in each of their rows."""

    run_id: str
    output: str
    task: Task
    run_date: str
    fingerprint: str
    shards: tuple[Shard, ...]
    schema: pa.Schema
    facts: dict[str, Any]

    @property
    def folder(self) -> str:
        """Where the run keeps its config, manifest shards and summary."""
        return run_folder(self.output, self.run_id)

    @property
    def rows(self) -> int:
        """Manifest rows, and so result rows."""
        return sum(shard.rows for shard in self.shards)

    @property
    def refused(self) -> int:
        """Rows that were refused at the manifest stage."""
        return sum(shard.refused for shard in self.shards)

    @property
    def groups(self) -> int:
        """Videos (with range and frame count) to fetch and decode."""
        return sum(shard.groups for shard in self.shards)


def run_folder(output: str, run_id: str) -> str:
    """The folder of one run below a job's output."""
    return join(output, "runs", run_id)


def make_run_id(now: datetime) -> str:
    """A new name that sorts by time, as in 20261122T031500Z-9f2c41."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def plan_run(config: JobConfig, run_id: str, fingerprint: str, now: datetime) -> Plan:
    """Write the run's config.yaml and manifest shards; the answer names them all.

    `now` dates the result files (UTC). Raises UserError for a manifest that is missing, empty or
    unreadable, and where the output cannot be written; ClusterError where storage is unreachable.
    """
    with TemporaryDirectory(prefix="hieravid-plan-") as scratch:
        manifest = open_manifest(config.manifest, Path(scratch))
        used = read_columns(config.task, manifest.rows.schema)
        carried = carried_fields([field for field in manifest.rows.schema if field.name not in used])
        asking = Asking(config.task, config.generation.prompt, fingerprint)
        staged = stage(manifest, asking, carried, Path(scratch, "rows.arrow"))
        if not len(staged):
            raise UserError(f"the manifest {config.manifest} is empty")
        output = absolute(config.output)  # workers may run in another directory
        folder = run_folder(output, run_id)
        write_atomic(join(folder, "config.yaml"), dump_config(config, fingerprint).encode())
        shards = tuple(_write_shards(staged, folder, config.cluster.rows_per_shard))
    return Plan(
        run_id=run_id,
        output=output,
        task=config.task,
        run_date=f"{now.astimezone(UTC):%Y-%m-%d}",
        fingerprint=fingerprint,
        shards=shards,
        schema=result_schema([field for _, field in carried]),
        facts={
            "run_id": run_id,
            "task": config.task,
            "config_fingerprint": fingerprint,
            "pruning_method": config.pruning.method,
            "code_version": code_version(),
        },
    )


def cut(ends: Sequence[int], rows_per_shard: int, longest: int = _LONGEST_SHARD) -> Iterator[tuple[int, int]]:
    """Where shards begin and end, given where the groups end.

    A shard takes whole groups up to `rows_per_shard` rows; a larger group gets one for itself,
    or several where it has more than `longest` rows.
    """
    begin = last = 0
    for end in map(int, ends):
        if end - begin > rows_per_shard and last > begin:
            yield begin, last
            begin = last
        while end - begin > max(longest, rows_per_shard):
            yield begin, begin + max(longest, rows_per_shard)
            begin += max(longest, rows_per_shard)
        last = end
    if last > begin:
        yield begin, last


def _write_shards(staged: StagedRows, folder: str, rows_per_shard: int) -> Iterator[Shard]:
    order, ends = staged.order()
    numberer = _ItemIds()
    for number, (begin, end) in enumerate(cut(ends, rows_per_shard)):
        name = f"shard-{number:05d}"
        uri = join(folder, "manifest", f"{name}.parquet")
        rows = staged.take(np.asarray(order[begin:end]))
        table = (
            rows.drop_columns(["identity"])
            .add_column(0, "item_id", pa.array(numberer.ids(rows), pa.string()))
            .add_column(1, "shard", pa.array([name] * rows.num_rows, pa.string()))
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        write_atomic(uri, sink.getvalue())
        refused = pc.is_valid(table["error_code"])
        wanted = table["group"].filter(pc.invert(refused))
        yield Shard(name, uri, table.num_rows, pc.sum(refused).as_py(), pc.count_distinct(wanted).as_py())


class _ItemIds:
    """Names rows one after the other: the identity and how many earlier rows of the manifest share it.

    Identical rows are of one group, and so come right after each other: only the counts of the
    current group are kept.
    """

    def __init__(self) -> None:
        """Begin before the first row."""
        self._group: str | None = None
        self._seen: Counter[str] = Counter()

    def ids(self, rows: pa.Table) -> list[str]:
        """The item_id of each row, in order."""
        named = []
        for group, identity in zip(rows["group"].to_pylist(), rows["identity"].to_pylist(), strict=True):
            if group != self._group:
                self._group, self._seen = group, Counter()
            named.append(hashlib.sha256(f"{identity}/{self._seen[identity]}".encode()).hexdigest()[:32])
            self._seen[identity] += 1
        return named
