"""The retention of a run's next rows, so that a budget of hours is used up when the last row is answered.

Pure arithmetic on what rows have cost: no clock, no cluster. The same rows in the same order give the same retentions.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_ROWS = 8  # between two decisions; also what the plan's own estimate counts for, besides rows that were seen
_DECISIONS = 64  # of a job that has too few rows for that
_MEMORY_ROWS = 256.0  # of older rows the weight falls by e over so many: costs drift through an archive
_FOLLOW = 0.5  # of the way to the wanted retention in one decision, as a ratio
LARGEST_STEP = 1.25  # and no further than by this factor
_SLOWEST = 4.0  # the most that workers are taken to idle: beyond, something else is wrong


@dataclass(frozen=True)
class RowCosts:
    """Seconds of a mean row, as planned. `steady_s`: vision and generation, which a retention does not change.

    `pruned_s[i]`: pruning and prefill at `retentions[i]`, ascending from the least that may be chosen to the most.
    """

    steady_s: float
    decode_s: float
    retentions: Sequence[float]
    pruned_s: Sequence[float]

    def pruned_at(self, retention: float) -> float:
        """Pruning and prefill at a retention, between neighbours by a straight line."""
        x, y = self.retentions, self.pruned_s
        place = min(max(bisect_left(x, retention), 1), len(x) - 1) if len(x) > 1 else 0
        if place == 0 or retention <= x[0]:
            return y[0]
        part = min(1.0, (retention - x[place - 1]) / (x[place] - x[place - 1]))
        return y[place - 1] + part * (y[place] - y[place - 1])


class _Correction:
    """How much more than planned something takes: seen over planned, the latest rows counting most."""

    def __init__(self, prior_rows: int) -> None:
        self._prior_rows = prior_rows
        self._seen = self._planned = 0.0

    def add(self, seen_s: float, planned_s: float) -> None:
        keep = math.exp(-1 / _MEMORY_ROWS)
        self._seen, self._planned = self._seen * keep + seen_s, self._planned * keep + planned_s

    def factor(self, planned_s: float) -> float:
        """With the plan as a few rows among those that were seen."""
        prior = self._prior_rows * planned_s
        return (self._seen + prior) / (self._planned + prior) if self._planned + prior else 1.0


class Controller:
    """Chooses the retention of the rows to come from what rows have cost so far and what is left."""

    def __init__(
        self, costs: RowCosts, rows: int, budget_s: float, retention: float, answerers: int = 1, decoders: int = 1
    ) -> None:
        """`rows` are to be answered in `budget_s` seconds of wall time by so many workers, at first with `retention`.

        Of a budget of GPU-hours that is hours over GPUs: the GPUs are held for as long as the run takes.
        """
        self._costs = costs
        self._rows = rows
        self._budget_s = budget_s
        self._answerers, self._decoders = answerers, decoders
        self._every = min(_MOST_ROWS, max(1, rows // _DECISIONS))
        self._steady, self._pruned, self._decode = (_Correction(self._every) for _ in range(3))
        self._done = 0
        self._next = self._every
        self._model_s = self._decode_s = 0.0
        self.retention = retention
        """Of the next rows."""

    def add(self, retention: float, steady_s: float, pruned_s: float, decode_s: float, spent_s: float) -> float:
        """Take in an answered row, which had `retention`; returns the retention of the next rows.

        Its seconds are busy ones as in result rows: `steady_s` of vision and generation, `pruned_s` of pruning and
        prefill, `decode_s` of decoding. `spent_s` is how much of the budget is gone by now, in wall time.
        """
        self._steady.add(steady_s, self._costs.steady_s)
        self._pruned.add(pruned_s, self._costs.pruned_at(retention))
        self._decode.add(decode_s, self._costs.decode_s)
        self._model_s += steady_s + pruned_s
        self._decode_s += decode_s
        self._done += 1
        # Rows of an older retention teach what rows cost, but what was decided last has yet to show.
        if self._done >= self._next and retention == self.retention and self._done < self._rows:
            self._next = self._done + self._every
            step = (self._wanted(spent_s) / self.retention) ** _FOLLOW
            moved = self.retention * min(max(step, 1 / LARGEST_STEP), LARGEST_STEP)
            self.retention = round(min(max(moved, self._costs.retentions[0]), self._costs.retentions[-1]), 4)
        return self.retention

    def skip(self, rows: int = 1) -> None:
        """Count rows that failed: they are not to come any more."""
        self._rows -= rows

    def _wanted(self, spent_s: float) -> float:
        """The most that the rest of the budget pays for; the least allowed where it pays for nothing."""
        costs = self._costs
        row_s = max(0.0, self._budget_s - spent_s) / max(1, self._rows - self._done) / self._idling(spent_s)
        # Where decoding is what takes the time, pruning more would only lose accuracy.
        row_s = max(row_s, self._decode.factor(costs.decode_s) * costs.decode_s / self._decoders)
        steady_s = self._steady.factor(costs.steady_s) * costs.steady_s
        middle = costs.pruned_at(self.retention)
        allowed_s = (row_s * self._answerers - steady_s) / self._pruned.factor(middle)
        return self._retention_for(allowed_s)

    def _idling(self, spent_s: float) -> float:
        """Wall time over that of the busier pool, from 1: what start-up, gaps and missing workers cost."""
        busy_s = max(self._model_s / self._answerers, self._decode_s / self._decoders)
        return min(max(spent_s / busy_s, 1.0), _SLOWEST) if busy_s else 1.0

    def _retention_for(self, pruned_s: float) -> float:
        """The largest retention whose planned pruning and prefill take at most `pruned_s`."""
        low, high = self._costs.retentions[0], self._costs.retentions[-1]
        if self._costs.pruned_at(high) <= pruned_s:
            return high
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self._costs.pruned_at(middle) <= pruned_s else (low, middle)
        return low
