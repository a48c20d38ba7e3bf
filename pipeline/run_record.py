"""What is kept of a run, so that any later one can take it up: its plan, as plan.json in the run folder.

plan.json is written last, when every manifest shard is there: a folder without one is of a run
that never began, and nothing was committed for it. Who plans anew gives up such folders first: a
driver that was taken for dead while it planned cannot begin its run any more, on the same rows.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.conditional_write import VersionConflict, replace_whole
from pipeline.config import Task
from pipeline.errors import ClusterError, UserError
from pipeline.item_ids import ID_ARRAY
from pipeline.provenance import code_version
from pipeline.result_schema import result_schema
from pipeline.storage import absolute, join, read_bytes, write_atomic

_FORMAT = 1
_GIVEN_UP = json.dumps({"format": _FORMAT, "given_up": True}).encode()
_REQUEST_S = 60.0  # for plan.json, the client's own retries included


@dataclass(frozen=True)
class Shard:
    """One manifest shard. `refused` of its `rows` need no work; `groups` counts what is to be decoded.

    `name` is unique among the runs of one output that ask the same. A `partial` shard holds some rows
    of the planned shard of its name: their results replace those in its result file.
    """

    name: str
    uri: str
    rows: int
    refused: int
    groups: int
    partial: bool = False


@dataclass(frozen=True)
class Plan:
    """A run, ready to start. `schema` is that of its result files, `facts` what is the same in each of their rows.

    `manifest_identity` is what `pipeline.manifest_identity` said of the manifest before it was read.
    """

    run_id: str
    output: str
    task: Task
    run_date: str
    fingerprint: str
    manifest_identity: str
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


def manifest_shard(output: str, run_id: str, name: str) -> str:
    """Where the manifest shard `name` of a run lies."""
    return join(run_folder(output, run_id), "manifest", f"{name}.parquet")


def run_facts(run_id: str, task: Task, fingerprint: str, pruning_method: str) -> dict[str, Any]:
    """What is the same in each result row of a run. The code is the one that runs now, also where another planned."""
    return {
        "run_id": run_id,
        "task": task,
        "config_fingerprint": fingerprint,
        "pruning_method": pruning_method,
        "code_version": code_version(),
    }


def write_plan(plan: Plan, manifest: str, ids: np.ndarray) -> None:
    """Record that a run is planned: its items (ID_ARRAY [rows]), then plan.json, with which it has begun.

    `manifest` is the manifest's uri, for whoever reads the file. ClusterError where the run was given up meanwhile.
    """
    write_atomic(join(plan.folder, "item_ids.bin"), ids.tobytes())
    told = {
        "format": _FORMAT,
        "run_id": plan.run_id,
        "task": plan.task,
        "run_date": plan.run_date,
        "fingerprint": plan.fingerprint,
        "pruning_method": plan.facts["pruning_method"],
        "manifest": manifest,
        "manifest_identity": plan.manifest_identity,
        "rows": plan.rows,
        "shards": [
            {"name": shard.name, "rows": shard.rows, "refused": shard.refused, "groups": shard.groups}
            for shard in plan.shards
        ],
    }
    _begin(plan.output, plan.run_id, (json.dumps(told, indent=1) + "\n").encode())


def _begin(output: str, run_id: str, data: bytes) -> None:
    uri = _plan_uri(output, run_id)
    try:
        replace_whole(uri, data, None, _REQUEST_S)
    except VersionConflict:
        if read_bytes(uri) != data:  # or it was written, and only the answer was lost
            raise ClusterError(f"the run {run_id} was given up by another start, which has the output now") from None


def give_up(output: str, run_id: str) -> bool:
    """See to it that a run which has not begun never will; False where it has begun after all.

    For the holder of the output's lease, whose own run is another.
    """
    try:
        replace_whole(_plan_uri(output, run_id), _GIVEN_UP, None, _REQUEST_S)
    except VersionConflict:
        return read_record(output, run_id) is None
    return True


def _plan_uri(output: str, run_id: str) -> str:
    return join(run_folder(output, run_id), "plan.json")


def read_record(output: str, run_id: str) -> dict[str, Any] | None:
    """The content of a run's plan.json; None for a run that never began. UserError where it is not one of ours."""
    uri = _plan_uri(output, run_id)
    try:
        data = read_bytes(uri)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    try:
        told = json.loads(data)
        known = told["format"] == _FORMAT
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{uri} is not the plan of a run") from None
    if not known:
        raise UserError(f"{uri} was written by another version of this program: use that one, or another output")
    return None if told.get("given_up") else told


def load_plan(output: str, run_id: str) -> Plan:
    """The plan of an earlier run. Raises UserError where there is none, ClusterError where storage is unreachable."""
    told = read_record(output, run_id)
    if told is None:
        raise UserError(f"{run_folder(output, run_id)} has no plan.json: the run never began")
    return plan_of(output, told)


def plan_of(output: str, told: dict[str, Any]) -> Plan:
    """The plan that `read_record` told of; its first shard is read for the columns that are carried through."""
    output, run_id = absolute(output), told["run_id"]
    shards = tuple(Shard(uri=manifest_shard(output, run_id, shard["name"]), **shard) for shard in told["shards"])
    return Plan(
        run_id=run_id,
        output=output,
        task=told["task"],
        run_date=told["run_date"],
        fingerprint=told["fingerprint"],
        manifest_identity=told["manifest_identity"],
        shards=shards,
        schema=_result_schema(shards[0]),
        facts=run_facts(run_id, told["task"], told["fingerprint"], told["pruning_method"]),
    )


def _result_schema(shard: Shard) -> pa.Schema:
    stored = pq.read_schema(io.BytesIO(read_bytes(shard.uri)))
    return result_schema(stored.field("carried").type if "carried" in stored.names else ())


def planned_ids(plan: Plan) -> np.ndarray:
    """The items of a run: ID_ARRAY [rows]. UserError where the file was damaged."""
    uri = join(plan.folder, "item_ids.bin")
    ids = read_bytes(uri)
    if len(ids) != plan.rows * ID_ARRAY.itemsize:
        raise UserError(f"{uri} is damaged: {len(ids)} bytes for {plan.rows} rows")
    return np.frombuffer(ids, ID_ARRAY)
