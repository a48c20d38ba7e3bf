"""The plan step: a manifest cut into shards, each a Parquet file in the run folder.

One shard is one unit of commit: it becomes one result file. Rows of one video, range and frame
count stay together, so that they are fetched, decoded and encoded once. Every manifest row that no
earlier run has taken on stands in exactly one shard, also one that was refused.
"""

from __future__ import annotations

import io
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import JobConfig
from pipeline.config_load import dump_config
from pipeline.errors import UserError
from pipeline.item_ids import KnownItems, as_texts, from_texts
from pipeline.manifest import check_apart, open_manifest
from pipeline.manifest_identity import manifest_identity
from pipeline.manifest_rows import read_columns
from pipeline.result_schema import carried_fields, result_schema
from pipeline.run_record import Plan, Shard, manifest_shard, run_facts, run_folder, write_plan
from pipeline.staging import ROW_FIELDS, Asking, StagedRows, stage
from pipeline.storage import absolute, join, read_bytes, write_atomic

if TYPE_CHECKING:
    from pipeline.ledger import Ledger

_LONGEST_SHARD = 65_536  # rows: one video with more questions than this is cut, and decoded once for each piece
_LARGEST_SHARD = 64 * 2**20  # bytes of rows, if there are several groups: who reads or writes a shard holds all of it
_WRITERS = 8  # shards written at once: on an object store each waits for an answer, on a disk for the flush
WORK_COLUMNS: tuple[str, ...] = ("item_id", "shard", *(field.name for field in ROW_FIELDS))
"""The columns of a manifest shard that the graph reads; besides them there is only `carried`."""


def make_run_id(now: datetime) -> str:
    """A new name that sorts by time, as in 20261122T031500Z-9f2c41."""
    return f"{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def plan_run(
    config: JobConfig,
    run_id: str,
    fingerprint: str,
    now: datetime,
    earlier: Ledger | None = None,
    before_write: Callable[[], None] = lambda: None,
) -> Plan | None:
    """Write a new run's config.yaml, manifest shards and, last, plan.json; the answer names them all.

    Rows that `earlier` runs have taken on are left out: None where no row is left, and then nothing
    is written. `now` dates the result files (UTC). `before_write` is called right before the run
    begins to exist, and raises where it must not: its rows may be another's by now. Raises UserError
    for a manifest that is missing, empty, unreadable or would hold the output's files, and where the
    output cannot be written; ClusterError where storage is unreachable.
    """
    check_apart(config.manifest, config.output)
    identity = manifest_identity(config.manifest)
    if earlier is not None and earlier.has_planned(identity):
        return None
    with TemporaryDirectory(prefix="hieravid-plan-") as scratch:
        staged, carried = _stage(config, fingerprint, Path(scratch))
        order, ends = staged.order()
        if earlier is not None:
            order, ends = _new_rows(order, ends, ~earlier.known_items().contains(staged.ids))
        if not len(order):
            return None
        output = absolute(config.output)  # workers may run in another directory
        write_atomic(join(run_folder(output, run_id), "config.yaml"), dump_config(config, fingerprint).encode())
        wanted = config.cluster.rows_per_shard
        longest = suitable_rows_per_shard(len(order)) if wanted == "auto" else wanted
        pieces = (order[begin:end] for begin, end in cut(ends, longest, staged.sizes[order]))
        first = earlier.next_shard if earlier is not None else 0
        plan = Plan(
            run_id=run_id,
            output=output,
            task=config.task,
            run_date=f"{now.astimezone(UTC):%Y-%m-%d}",
            fingerprint=fingerprint,
            manifest_identity=identity,
            shards=tuple(_write_shards(staged, pieces, output, run_id, first)),
            schema=result_schema(carried),
            facts=run_facts(run_id, config.task, fingerprint, config.pruning.method),
        )
        before_write()
        write_plan(plan, absolute(config.manifest), np.sort(staged.ids[order]))
    return plan


def manifest_items(config: JobConfig, fingerprint: str) -> KnownItems:
    """Every item of the job's manifest, whether planned before or not. Errors as of `plan_run`; writes nothing."""
    with TemporaryDirectory(prefix="hieravid-plan-") as scratch:
        staged, _ = _stage(config, fingerprint, Path(scratch))
        return KnownItems(staged.ids)


def subset_shard(plan: Plan, shard: Shard, wanted: KnownItems) -> Shard | None:
    """A partial shard of the rows of a committed `shard` that are `wanted`, to be answered again; None where none is.

    Rows that were refused at the manifest stage are left out: their result would be the same. The
    file, in the run's folder `retry`, replaces that of an earlier retry of the shard.
    """
    rows = pq.read_table(io.BytesIO(read_bytes(shard.uri)))
    chosen = wanted.contains(from_texts(rows["item_id"].to_pylist())) & rows["error_code"].is_null().to_numpy()
    rows = rows.filter(pa.array(chosen))
    if not rows.num_rows:
        return None
    uri = join(plan.folder, "retry", f"{shard.name}.parquet")
    _write(uri, rows)
    return _described(shard.name, uri, rows, partial=True)


def suitable_rows_per_shard(rows: int) -> int:
    """Rows of a shard where the job leaves them open: about 256 shards a run, of 64 to 4096 rows.

    A driver that dies loses the few shards in work, so about a hundredth of any run. A result row
    takes some 600 bytes: a million rows become 245 files of 2.3 MB.
    """
    return min(4096, max(64, 2 ** math.ceil(math.log2(max(1, rows) / 256))))


def cut(
    ends: Sequence[int],
    rows_per_shard: int,
    sizes: np.ndarray,
    longest: int = _LONGEST_SHARD,
    largest: int = _LARGEST_SHARD,
) -> Iterator[tuple[int, int]]:
    """Where shards begin and end, given where the groups end and the bytes of each row (`sizes`, int [rows]).

    A shard takes whole groups up to `rows_per_shard` rows and `largest` bytes. A group that is more than
    that gets a shard for itself, or several where it has more than `longest` rows.
    """
    bytes_before = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    begin = last = 0
    for end in map(int, ends):
        is_full = end - begin > rows_per_shard or bytes_before[end] - bytes_before[begin] > largest
        if is_full and last > begin:
            yield begin, last
            begin = last
        while end - begin > max(longest, rows_per_shard):
            yield begin, begin + max(longest, rows_per_shard)
            begin += max(longest, rows_per_shard)
        last = end
    if last > begin:
        yield begin, last


def _stage(config: JobConfig, fingerprint: str, scratch: Path) -> tuple[StagedRows, list[pa.Field]]:
    """The manifest's rows, checked and named, and the result fields that it carries through."""
    manifest = open_manifest(config.manifest, scratch)
    used = read_columns(config.task, manifest.rows.schema)
    carried = carried_fields([field for field in manifest.rows.schema if field.name not in used])
    asking = Asking(config.task, config.generation.prompt, fingerprint)
    staged = stage(manifest, asking, carried, scratch / "rows.arrow")
    if not len(staged):
        raise UserError(f"the manifest {config.manifest} is empty")
    return staged, [field for _, field in carried]


def _new_rows(order: np.ndarray, ends: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`order` and `ends` of `StagedRows.order` without the rows that are not `new` (bool [rows], in manifest order)."""
    kept = new[order]
    return order[kept], np.unique(np.cumsum(kept)[ends - 1])


def _write_shards(
    staged: StagedRows, pieces: Iterable[np.ndarray], output: str, run_id: str, first: int
) -> Iterator[Shard]:
    """Write a shard for each piece (row numbers), the first with the number `first`; a few are on their way at once."""
    writing: deque[tuple[Shard, Future[None]]] = deque()
    with ThreadPoolExecutor(_WRITERS) as writers:
        for number, piece in enumerate(pieces, first):
            name = f"shard-{number:05d}"
            uri = manifest_shard(output, run_id, name)
            rows = (
                staged.take(piece)
                .add_column(0, "item_id", pa.array(as_texts(staged.ids[piece]), pa.string()))
                .add_column(1, "shard", pa.array([name] * len(piece), pa.string()))
            )
            writing.append((_described(name, uri, rows), writers.submit(_write, uri, rows)))
            if len(writing) > _WRITERS:
                yield _written(*writing.popleft())
        while writing:
            yield _written(*writing.popleft())


def _written(shard: Shard, writing: Future[None]) -> Shard:
    writing.result()
    return shard


def _write(uri: str, rows: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="zstd")
    write_atomic(uri, sink.getvalue())


def _described(name: str, uri: str, rows: pa.Table, partial: bool = False) -> Shard:
    refused = pc.is_valid(rows["error_code"])
    groups = pc.count_distinct(rows["group"].filter(pc.invert(refused)))
    return Shard(name, uri, rows.num_rows, pc.sum(refused).as_py(), groups.as_py(), partial)
