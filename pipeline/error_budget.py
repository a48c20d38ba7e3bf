"""Whether so many rows of a run fail that going on is no use, judged from a part of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.collector import Collector

FEWEST_ROWS = 200  # answered or failed, before anything is judged from them
_QUANTILE_99 = 2.3263478740408408  # of the normal distribution, one-sided


def wilson_lower_bound(failed: int, rows: int) -> float:
    """The lower end of the one-sided 99 % interval of a share of which `failed` of `rows` failed (Wilson's)."""
    if not rows:
        return 0.0
    share, square = failed / rows, _QUANTILE_99**2
    spread = _QUANTILE_99 * math.sqrt(share * (1 - share) / rows + square / (4 * rows**2))
    return max(0.0, (share + square / (2 * rows) - spread) / (1 + square / rows))


@dataclass(frozen=True)
class Standing:
    """Rows of the runs in work that are committed and stay as they are: how many, and how many of them failed."""

    rows: int = 0
    failed: int = 0


class ErrorBudget:
    """Compares the failed share that the runs in work will end with to what the job allows.

    What this start has seen is taken for the rows that are still to come. So a start that goes on
    after the cause was mended has room again, and one that only retries failed rows is not judged
    by these alone.
    """

    def __init__(self, max_failed_share: float, collector: Collector, standing: Standing) -> None:
        """`collector` takes the rows in; `standing` are those that it does not wait for."""
        self._limit = max_failed_share
        self._collector = collector
        self._standing = standing

    def is_exceeded(self) -> bool:
        """Whether, with 99 % confidence, more than `max_failed_share` of all rows will have failed in the end."""
        seen = self._collector.rows - self._collector.refused
        failed = self._collector.failed - self._collector.refused
        if seen < FEWEST_ROWS:
            return False
        to_do = self._collector.total - self._collector.refused
        fail = max(failed, wilson_lower_bound(failed, seen) * to_do) + self._collector.refused + self._standing.failed
        return fail > self._limit * (self._collector.total + self._standing.rows)

    def told(self) -> str:
        """Why the run stops, in words."""
        return (
            f"{self._collector.failed} of {self._collector.rows} rows failed: more than failures.max_failed_share "
            f"allows ({self._limit:.1%}) will, so no further rows are taken, and those in work are finished"
        )
