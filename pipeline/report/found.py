"""Which run a report is about, and what of it lies in the storage."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.listing import list_below, list_folders
from pipeline.query_files import find_place
from pipeline.run_record import read_record, run_folder
from pipeline.storage import exists, is_folder, join, read_bytes
from pipeline.summary import RunSummary, parse_summary

_RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+")


@dataclass(frozen=True)
class FoundRun:
    """A run and its files.

    `plan` is its plan.json, `summary` its summary.json, `config` its config.yaml: None where there is
    none, or one of another version. `files` are its result files, `others` the other runs of the output.
    """

    run_id: str
    output: str
    plan: dict[str, Any] | None
    summary: RunSummary | None
    config: str | None
    files: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def samples(self) -> str:
        """The folder of sample pictures."""
        return join(run_folder(self.output, self.run_id), "samples")

    @property
    def planned_rows(self) -> int | None:
        """How many rows the run is to answer, None where that is not told."""
        if self.plan is not None:
            return self.plan.get("rows")
        return self.summary.manifest_rows if self.summary else None

    @property
    def name(self) -> str:
        """What the job is called; the run's id where that is not told."""
        return self.summary.name if self.summary else str(self._settings().get("name", self.run_id))

    def setting(self, section: str, key: str) -> Any:
        """A value of the run's config; None where it cannot be told."""
        found = self._settings().get(section)
        return found.get(key) if isinstance(found, dict) else None

    def _settings(self) -> dict[str, Any]:
        try:
            found = yaml.safe_load(self.config or "")
        except (yaml.YAMLError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def find_run(place: str, beside: FoundRun | None = None) -> FoundRun:
    """The run at `place`: a run's folder, or an output, which stands for its latest run.

    With another run `beside` it, `place` may be a run id of the same output. Raises UserError where
    there is no run, ClusterError where the storage cannot be reached.
    """
    if beside is not None and _RUN_ID.fullmatch(place) and not exists(place):
        return _found(beside.output, place)
    named = find_place(place)
    if named.run_id is not None and is_folder(str(named)):
        return _found(named.output, named.run_id)
    begun = _begun(str(named))
    if not begun:
        raise UserError(f"{named}: there is no run here: the output of a job or a folder <output>/runs/<run> is needed")
    return _found(str(named), begun[-1])


def _begun(output: str) -> list[str]:
    """The runs of an output that have begun, oldest first."""
    return [run_id for run_id in sorted(list_folders(join(output, "runs"))) if _has_begun(output, run_id)]


def _has_begun(output: str, run_id: str) -> bool:
    return read_record(output, run_id) is not None or exists(join(run_folder(output, run_id), "summary.json"))


def _found(output: str, run_id: str) -> FoundRun:
    plan = read_record(output, run_id)
    folder = run_folder(output, run_id)
    summary = _read(join(folder, "summary.json"))
    config = _read(join(folder, "config.yaml"))
    if plan is None and summary is None:
        raise UserError(f"{folder} has neither plan.json nor summary.json: the run never began")
    results = join(output, "results", f"run_date={plan['run_date']}") if plan else join(output, "results")
    files = [uri for uri in list_below(results) if _is_of(uri, run_id)]
    return FoundRun(
        run_id=run_id,
        output=output,
        plan=plan,
        summary=parse_summary(summary) if summary else None,
        config=config.decode("utf-8", "replace") if config else None,
        files=tuple(files),
        others=tuple(other for other in sorted(list_folders(join(output, "runs"))) if other != run_id),
    )


def _is_of(uri: str, run_id: str) -> bool:
    name = uri.rpartition("/")[2]
    return name.startswith(f"{run_id}-shard-") and name.endswith(".parquet")


def _read(uri: str) -> bytes | None:
    try:
        return read_bytes(uri)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
