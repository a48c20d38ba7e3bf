"""How far the runs of an output are, read from its folder: nothing of it needs the cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.lease import LEASE_TIMES, LeaseTimes
from pipeline.lease_record import LeaseRecord
from pipeline.query_files import Place, find_results, find_runs
from pipeline.run_record import read_record, run_folder
from pipeline.storage import join, read_bytes

State = Literal["planning", "running", "done", "too many failures", "refused", "failed", "interrupted", "broken off"]
_STATES: dict[int, State] = {0: "done", 1: "too many failures", 2: "refused", 3: "failed", 130: "interrupted"}
_READERS = 16
_CLOCK_ERROR_S = 2.0


@dataclass(frozen=True)
class RunStatus:
    """One run. `rows` of its `manifest_rows` are committed, `errors` of them failed.

    `state`: planning and running while the output's lease is alive; broken off where a driver died without
    a word; else how it ended: done (exit status 0), too many failures (1), refused (2: the user must change
    something), failed (3: cluster or storage), interrupted (130). `rows_per_min` is rows over the time in
    which some row was in work, `remaining_s` what the open ones take at that rate; None where it is unknown.
    """

    run_id: str
    state: State
    exit_status: int | None
    manifest_rows: int | None
    rows: int
    errors: int
    error_codes: dict[str, int]
    rows_per_min: float | None
    remaining_s: float | None
    results: str
    summary: dict[str, Any] | None

    @property
    def left(self) -> int | None:
        """Rows without a result."""
        return None if self.manifest_rows is None else self.manifest_rows - self.rows


@dataclass(frozen=True)
class OutputStatus:
    """The runs of an output, oldest first, and who writes to it now, if anyone."""

    output: str
    holder: str | None
    runs: tuple[RunStatus, ...]


def read_status(place: Place, times: LeaseTimes = LEASE_TIMES) -> OutputStatus:
    """What the run folders of an output tell.

    Raises UserError where there is no run, ClusterError where storage is unreachable. Where it is not certain
    from a clock alone whether the holder of the lease lives, this watches for a sign of life for up to
    `times.expiry_s`.
    """
    try:
        run_ids = find_runs(place)
    except UserError:
        if place.run_id is not None or (holder := _living_holder(place.output, times)) is None:
            raise
        return OutputStatus(place.output, str(holder), ())  # it has begun to plan its first run
    with ThreadPoolExecutor(_READERS) as readers:
        plans = list(readers.map(lambda run_id: read_record(place.output, run_id), run_ids))
        summaries = list(readers.map(lambda run_id: _summary(place.output, run_id), run_ids))
    is_open = any(summary is None or summary.get("exit_status") is None for summary in summaries)
    holder = _living_holder(place.output, times) if is_open else None
    files = _files(place) if is_open else {}
    runs = tuple(
        _run(place.output, run_id, plan, _counted(summary, plan, files.get(run_id, [])), holder is not None)
        for run_id, plan, summary in zip(run_ids, plans, summaries, strict=True)
        if plan or summary or holder  # else a run that never began to exist
    )
    return OutputStatus(place.output, str(holder) if holder else None, runs)


def _run(
    output: str, run_id: str, plan: dict[str, Any] | None, summary: dict[str, Any] | None, is_held: bool
) -> RunStatus:
    told = summary or {}
    exit_status, total = told.get("exit_status"), told.get("manifest_rows", plan and plan["rows"])
    rows, working_s = told.get("rows", 0), told.get("working_s")
    state: State = _STATES.get(exit_status, "failed") if exit_status is not None else "broken off"
    if exit_status is None and is_held:
        state = "running" if plan else "planning"
    rate = rows / working_s if rows and working_s else None
    return RunStatus(
        run_id=run_id,
        state=state,
        exit_status=exit_status,
        manifest_rows=total,
        rows=rows,
        errors=told.get("errors", 0),
        error_codes=told.get("error_codes", {}),
        rows_per_min=rate * 60 if rate else None,
        remaining_s=(total - rows) / rate if rate and total is not None and state == "running" else None,
        results=told.get("results") or join(output, "results", "**", f"{run_id}-*.parquet"),
        summary=summary,
    )


def _files(place: Place) -> dict[str, list[str]]:
    try:
        return find_results(place)
    except UserError:
        return {}


def _counted(summary: dict[str, Any] | None, plan: dict[str, Any] | None, files: list[str]) -> dict[str, Any] | None:
    """The summary of a run that was not closed, with as many rows as its result files have: they are written first."""
    if plan is None or (summary is not None and summary.get("exit_status") is not None):
        return summary
    sizes = {f"{plan['run_id']}-{shard['name']}.parquet": shard["rows"] for shard in plan["shards"]}
    rows = sum(sizes.get(uri.rpartition("/")[2], 0) for uri in files)
    return {"manifest_rows": plan["rows"], **(summary or {}), "rows": rows}


def _summary(output: str, run_id: str) -> dict[str, Any] | None:
    """What summary.json holds, of whatever version; None where there is none."""
    try:
        told = json.loads(read_bytes(join(run_folder(output, run_id), "summary.json")))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def _living_holder(output: str, times: LeaseTimes) -> LeaseRecord | None:
    """Whose the output's lease is, if that process lives."""
    uri = join(output, "runs", "lease.json")

    def look() -> LeaseRecord | None:
        try:
            return LeaseRecord.parse(read_bytes(uri))
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise

    record = look()
    if record is None or record.released:
        return None
    return record if _is_fresh(record, times) else _watch(record, look, times)


def _is_fresh(record: LeaseRecord, times: LeaseTimes) -> bool:
    """Whether it was renewed a moment ago by this machine's clock, which may be another's than the holder's."""
    try:
        renewed = datetime.strptime(record.renewed, "%Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:
        return False
    age_s = (datetime.now(UTC) - renewed).total_seconds()
    return -_CLOCK_ERROR_S <= age_s <= times.heartbeat_s + _CLOCK_ERROR_S


def _watch(record: LeaseRecord, look: Callable[[], LeaseRecord | None], times: LeaseTimes) -> LeaseRecord | None:
    """The holder if its lease is renewed within the time in which it would expire."""
    deadline = time.monotonic() + times.expiry_s
    while time.monotonic() < deadline:
        time.sleep(times.pause_s)
        latest = look()
        if latest is None or latest.released:
            return None
        if (latest.token, latest.renewals) != (record.token, record.renewals):
            return latest
    return None
