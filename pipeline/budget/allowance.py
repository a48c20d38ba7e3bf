"""What of a job's budget is left for the rows that a start has to do."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.budget.cost import PoolSizes
from pipeline.config import BudgetConfig

_NOTHING = 1e-9  # of a budget that is used up: the rest is answered at the least retention


@dataclass(frozen=True)
class Allowance:
    """A `share` of the budget, less what earlier starts spent.

    `worked_s` is the time in which some row of these was in work, `elapsed_s` all that starts took: a deadline
    runs on while a job starts, and hours of workers are planned without what starting them takes.
    """

    budget: BudgetConfig
    share: float = 1.0
    worked_s: float = 0.0
    elapsed_s: float = 0.0

    @property
    def is_begun(self) -> bool:
        """Whether some of it is spent: such a run is ended, whatever that takes, and not refused."""
        return self.worked_s > 0

    def left(self, pools: PoolSizes, elapsed_s: float) -> BudgetConfig:
        """The same budget with what is left of its amount, `elapsed_s` after this start began."""
        key = self.budget.key
        hours = self.worked_s / 3600 * pools.devices
        spent = {
            "deadline": self.elapsed_s + elapsed_s,
            "gpu_hours": hours,
            "usd": hours * (self.budget.usd_per_gpu_hour or 0.0),
        }
        if key not in spent:
            return self.budget
        left = getattr(self.budget, key) * self.share - spent[key]
        return self.budget.model_copy(update={key: max(left, _NOTHING)})
