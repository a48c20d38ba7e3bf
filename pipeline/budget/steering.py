"""A run that keeps to its budget: what its rows cost goes in, the retention of the next ones comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.budget.controller import Controller
from pipeline.budget.cost import CostModel, budget_seconds
from pipeline.config import BudgetConfig

_STEADY = ("vision_ms", "generate_ms")
_PRUNED = ("prune_ms", "prefill_ms")


class Steering:
    """The retention of a run's rows, held to a budget of time. Others (tokens, FLOPs) keep what they began with."""

    def __init__(
        self,
        budget: BudgetConfig,
        costs: CostModel,
        retention: float,
        rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rows` are to be answered from now on, at first with `retention`. `clock` gives seconds."""
        self._clock = clock
        # A deadline runs from the start. Hours of workers are planned without what starting them takes.
        self._began_s = clock() if budget.deadline is not None else None
        self.retention = retention
        self._issued = {retention}
        self._controller: Controller | None = None
        seconds = budget_seconds(budget, costs.pools)
        if seconds is not None and rows:
            least = min(max(budget.min_retention, costs.workload.least_retention()), budget.max_retention)
            self._controller = Controller(
                costs.per_row(least, budget.max_retention),
                rows,
                seconds,
                retention,
                costs.pools.answerers,
                costs.pools.decoders,
            )

    def see(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take rows as they come in; `retention` may be another one afterwards."""
        if self._began_s is None:
            self._began_s = self._clock()
        spent_s = self._clock() - self._began_s
        for row in rows:
            self._see(row, spent_s)
        self._issued.add(self.retention)

    def _see(self, row: Mapping[str, Any], spent_s: float) -> None:
        if self._controller is None:
            return
        # A row of the manifest's own retention tells nothing of what the others will cost.
        if row["status"] != "ok" or row["retention_requested"] not in self._issued:
            self._controller.skip()
            return
        self.retention = self._controller.add(
            row["retention_requested"],
            _seconds(row, _STEADY),
            _seconds(row, _PRUNED),
            _seconds(row, ("decode_ms",)),
            spent_s,
        )


def _seconds(row: Mapping[str, Any], columns: Iterable[str]) -> float:
    return sum(row[name] or 0.0 for name in columns) / 1e3
