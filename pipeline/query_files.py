"""Which runs and result files a user means by the folder of an output, or of one of its runs."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.listing import list_below, list_folders
from pipeline.storage import absolute, join

_RUN_FOLDER = re.compile(r"(?P<output>.+)/runs/(?P<run_id>[^/]+)")
_RESULT_FILE = re.compile(r"(?P<run_id>[^/]+)-shard-[^/]+\.parquet")


@dataclass(frozen=True)
class Place:
    """A job's output, or one run of it."""

    output: str
    run_id: str | None = None

    def __str__(self) -> str:
        """As messages name it."""
        return join(self.output, "runs", self.run_id) if self.run_id else self.output


def find_place(word: str) -> Place:
    """The place that a folder's name stands for; whether anything is there is not looked up."""
    place = absolute(word).rstrip("/") or "/"
    match = _RUN_FOLDER.fullmatch(place)
    return Place(match["output"], match["run_id"]) if match else Place(place)


def find_runs(place: Place) -> list[str]:
    """The ids of the runs of a place, oldest first. Raises UserError where there is none."""
    run_ids = sorted(list_folders(join(place.output, "runs")))
    if place.run_id is None:
        if run_ids:
            return run_ids
        raise UserError(f"{place.output} holds no run: it is not the output of a job that has started")
    if place.run_id not in run_ids:
        raise UserError(f"{place.output} holds no run {place.run_id}; {_known(run_ids)}")
    return [place.run_id]


def _known(run_ids: list[str]) -> str:
    return f"the latest is {run_ids[-1]}" if run_ids else "there is none at all"


def find_results(place: Place) -> dict[str, list[str]]:
    """The result files of a place by run. Raises UserError where there is none yet."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    for uri in list_below(join(place.output, "results")):
        match = _RESULT_FILE.fullmatch(uri.rpartition("/")[2])
        if match and place.run_id in (None, match["run_id"]):
            files[match["run_id"]].append(uri)
    if not files:
        find_runs(place)
        raise UserError(f"{place} has no results yet: `hieravid status {place.output}` shows how far it is")
    return dict(files)


def find_shards(output: str, run_id: str) -> list[str]:
    """The manifest shards of a run; none where its folder was removed."""
    return [uri for uri in list_below(join(output, "runs", run_id, "manifest")) if uri.endswith(".parquet")]
