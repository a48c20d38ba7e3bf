"""What an output already holds: the runs planned there, and which of their shards are committed.

Nothing of it is state of its own: it is read from the runs' plan.json files and one listing of the
result files. A shard whose file is there is done, any other is open.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Task
from pipeline.errors import UserError
from pipeline.item_ids import ID_ARRAY, KnownItems, from_texts
from pipeline.listing import list_below, list_folders
from pipeline.results import result_uri
from pipeline.run_record import Plan, Shard, plan_of, planned_ids, read_record
from pipeline.storage import absolute, join, read_bytes

_READERS = 16  # small files of an object store are read at once: each takes a round trip and little else


@dataclass(frozen=True)
class RunRecord:
    """A run that was planned, and the names of its shards whose result file is there."""

    plan: Plan
    committed: frozenset[str]

    @property
    def open(self) -> tuple[Shard, ...]:
        """The shards that are still to be done, refused rows included."""
        return tuple(shard for shard in self.plan.shards if shard.name not in self.committed)

    @property
    def done(self) -> tuple[Shard, ...]:
        """The shards that are committed."""
        return tuple(shard for shard in self.plan.shards if shard.name in self.committed)


@dataclass(frozen=True)
class Ledger:
    """The runs of one output that ask the same, oldest first.

    `strays` are result files there whose run has no plan, as after someone removed its folder;
    `unbegun` names the folders of runs that have no plan (yet), whatever they were to ask.
    """

    runs: tuple[RunRecord, ...]
    strays: tuple[str, ...]
    unbegun: tuple[str, ...] = ()

    @property
    def next_shard(self) -> int:
        """The number that no shard of these runs has reached."""
        numbers = (int(shard.name.rpartition("-")[2]) for run in self.runs for shard in run.plan.shards)
        return max(numbers, default=-1) + 1

    def has_planned(self, manifest_identity: str) -> bool:
        """Whether exactly this manifest was planned before, so that none of its rows can be new."""
        return any(run.plan.manifest_identity == manifest_identity for run in self.runs)

    def known_items(self) -> KnownItems:
        """Every item that is committed or stands in an open shard.

        Each run has them in one file: to read a column of every result file instead would take a
        hundred times as long on an object store. Strays have only that column.
        """
        strays = [_item_column(uri) for uri in self.strays]
        ends = np.cumsum([0, *(run.plan.rows for run in self.runs), *map(len, strays)])
        ids = np.empty(ends[-1], ID_ARRAY)

        def fill(number: int, plan: Plan) -> None:
            ids[ends[number] : ends[number + 1]] = planned_ids(plan)

        with ThreadPoolExecutor(_READERS) as readers:
            for _ in readers.map(fill, range(len(self.runs)), [run.plan for run in self.runs]):
                pass  # raises what went wrong
        if strays:
            ids[ends[len(self.runs)] :] = np.concatenate(strays)
        return KnownItems(ids)


def read_ledger(output: str, fingerprint: str, task: Task) -> Ledger:
    """Take stock of `output`: an empty ledger where nothing was done yet.

    Raises UserError where a plan cannot be read, ClusterError where storage is unreachable.
    """
    output = absolute(output)
    with ThreadPoolExecutor(_READERS) as readers:
        run_ids = sorted(list_folders(join(output, "runs")))
        told = [record for record in readers.map(lambda run_id: read_record(output, run_id), run_ids) if record]
        same = [record for record in told if (record["fingerprint"], record["task"]) == (fingerprint, task)]
        plans = list(readers.map(lambda record: plan_of(output, record), same))
    begun = {record["run_id"] for record in told}
    committed, strays = _match(output, plans, begun)
    runs = tuple(RunRecord(plan, frozenset(committed[plan.run_id])) for plan in plans)
    return Ledger(runs, tuple(strays), tuple(run_id for run_id in run_ids if run_id not in begun))


def failed_items(plan: Plan, shard: Shard, codes: Collection[str] | None = None) -> KnownItems:
    """The items of a committed shard that failed, with one of `codes` where given.

    Without those refused at the manifest stage: asked again they would only be refused again.
    """
    rows = _columns(result_uri(plan, shard), ["item_id", "status", "error_stage", "error_code"])
    failed = rows.filter(pc.and_(pc.equal(rows["status"], "error"), pc.not_equal(rows["error_stage"], "manifest")))
    return KnownItems(
        from_texts(
            item_id
            for item_id, code in zip(failed["item_id"].to_pylist(), failed["error_code"].to_pylist(), strict=True)
            if codes is None or code in codes
        )
    )


def _match(output: str, plans: list[Plan], begun: Collection[str]) -> tuple[dict[str, set[str]], list[str]]:
    """Which shards of `plans` have a result file, and the result files of no run in `begun`."""
    expected = {_place(result_uri(plan, shard)): (plan.run_id, shard.name) for plan in plans for shard in plan.shards}
    committed: dict[str, set[str]] = {plan.run_id: set() for plan in plans}
    strays = []
    for uri in _result_files(output):
        if (found := expected.get(_place(uri))) is not None:
            run_id, name = found
            committed[run_id].add(name)
        elif uri.rpartition("/")[2].rpartition("-shard-")[0] not in begun:
            strays.append(uri)
    return committed, strays


def _result_files(output: str) -> Iterator[str]:
    return (uri for uri in list_below(join(output, "results")) if uri.endswith(".parquet"))


def _place(uri: str) -> str:
    """A result file's partition and name."""
    return "/".join(uri.split("/")[-2:])


def _item_column(uri: str) -> np.ndarray:
    try:
        rows = _columns(uri, ["item_id"])
        return from_texts(rows["item_id"].to_pylist())
    except (pa.ArrowException, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{uri} is not a result file: move it away from the results") from error


def _columns(uri: str, names: list[str]) -> pa.Table:
    with pq.ParquetFile(io.BytesIO(read_bytes(uri))) as file:
        return file.read(columns=names)
