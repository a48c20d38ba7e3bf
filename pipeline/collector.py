"""From rows in any order to committed shards: the one writer of an output's result files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.errors import ERROR_CODES
from pipeline.lease import LeaseLost
from pipeline.metrics import Outcome
from pipeline.patience import patiently
from pipeline.results import Committed, commit_shard
from pipeline.run_record import Plan, Shard


class Collector:
    """Gathers rows by shard and commits each shard when its last row is there.

    `rows` and `failed` count what has come in, refused rows included; `total` is what is to come in.
    `outcomes` counts by outcome, and refused rows, of which only their file tells why, once that is committed.
    """

    def __init__(self, tasks: Iterable[tuple[Plan, Shard]], before_write: Callable[[], None] | None = None) -> None:
        """Nothing is written yet. `before_write` raises where nothing may be written any more."""
        self._before_write = before_write
        self._open = {shard.name: (plan, shard) for plan, shard in tasks}
        self._arrived: dict[str, dict[str, dict[str, Any]]] = {}
        shards = [shard for _, shard in self._open.values()]
        self.total = sum(shard.rows for shard in shards)
        self.refused = sum(shard.refused for shard in shards)
        self.rows = self.failed = self.refused
        self.outcomes: Counter[Outcome] = Counter()

    @property
    def in_flight(self) -> bool:
        """Whether there is a shard of which some rows have come in and others not."""
        return bool(self._arrived)

    def commit_refused(self) -> Iterator[Committed]:
        """Commit the shards of which nothing enters the graph."""
        for _, shard in list(self._open.values()):
            if shard.rows == shard.refused:
                yield self._commit(shard.name)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Committed]:
        """Take rows of `answered_rows`; yield the shards that became complete and are committed."""
        for row in map(dict, rows):
            name = row.pop("shard")
            if name not in self._open:
                continue  # a late twin, from a task that Ray ran again
            arrived = self._arrived.setdefault(name, {})
            if row["item_id"] in arrived:
                continue
            arrived[row["item_id"]] = row
            self.rows += 1
            self.failed += row["status"] == "error"
            self.outcomes[row["status"], row.get("error_stage") or "", row.get("error_code") or ""] += 1
            shard = self._open[name][1]
            if len(arrived) == shard.rows - shard.refused:
                yield self._commit(name)

    def take_no_more(self) -> None:
        """From now on only shards in flight are finished; the others stay open, for a later start."""
        self._open = {name: task for name, task in self._open.items() if name in self._arrived}

    def commit_rest(self) -> Iterator[Committed]:
        """Commit what is still open after the graph has ended: rows that never came become error rows `lost`.

        Not to be called after a failure: shards left open then are done again by a later start.
        """
        for name, (_, shard) in list(self._open.items()):
            missing = shard.rows - shard.refused - len(self._arrived.get(name, {}))
            self.rows += missing
            self.failed += missing
            self.outcomes["error", "generate", "lost"] += missing
            yield self._commit(name)

    def _commit(self, name: str) -> Committed:
        plan, shard = self._open.pop(name)
        rows = self._arrived.pop(name, {}).values()
        file = patiently(lambda: commit_shard(plan, shard, rows, self._before_write), final=(LeaseLost,))
        for code, count in file.error_codes.items() if shard.refused else ():
            if ERROR_CODES[code][0] == "manifest":
                self.outcomes["error", "manifest", code] += count
        return file
