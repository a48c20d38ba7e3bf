"""The retention that meets a budget: the most that does, or word of the least that would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.budget.cost import Estimate
from pipeline.config import BudgetConfig
from pipeline.errors import UserError

_STEPS = 24  # of bisection: far finer than a token of any video

_COSTS: dict[str, Callable[[Estimate], float]] = {
    "tokens_per_video": lambda estimate: estimate.tokens.kept / estimate.tokens.rows,
    "flops_share": lambda estimate: estimate.flops_ratio,
    "gpu_hours": lambda estimate: estimate.gpu_hours,
    "deadline": lambda estimate: estimate.duration_s,
    "usd": lambda estimate: estimate.usd or 0.0,
}
_UNITS = {
    "tokens_per_video": "video tokens a row",
    "flops_share": "of the unpruned FLOPs",
    "gpu_hours": "hours",
    "deadline": "s",
    "usd": "USD",
}


@dataclass(frozen=True)
class Choice:
    """A retention, and what the job comes to at it."""

    retention: float
    estimate: Estimate


def choose(budget: BudgetConfig, at: Callable[[float], Estimate], least: float, may_refuse: bool = True) -> Choice:
    """The largest retention within the budget's bounds that costs no more than was asked for.

    `at` estimates the job at a retention; costs must not fall as it grows, but from just below 1 to 1, where nothing is
    pruned. `least` is the least retention that the method reaches. Raises UserError, with the least that the budget
    would have to be, where even the smallest retention costs more (what vision, generation and decoding take, no
    retention saves); with `may_refuse` off it is the smallest then.
    """
    if budget.retention is not None:
        return Choice(budget.retention, at(budget.retention))
    wanted, cost = getattr(budget, budget.key), _COSTS[budget.key]
    low, high = max(budget.min_retention, least), budget.max_retention
    if low > high:
        raise UserError(f"budget.max_retention = {high:g}: the pruning method keeps at least {low:.4g} here")
    if cost(best := at(high)) <= wanted:
        return Choice(high, best)
    if cost(best := at(low)) > wanted:
        if not may_refuse:
            return Choice(low, best)
        raise UserError(
            f"budget.{budget.key} = {wanted:g} is out of reach: at a retention of {low:.4g} the job still takes "
            f"{_rounded_up(cost(best)):g} {_UNITS[budget.key]} (bottleneck: {best.bottleneck})"
        )
    retention = low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        tried = at(middle)
        if cost(tried) <= wanted:
            low, retention, best = middle, middle, tried
        else:
            high = middle
    return Choice(retention, best)


def _rounded_up(number: float) -> float:
    """Three digits, no less than the number: given as a budget it is enough."""
    up = float(f"{number:.3g}")
    return up if up >= number else float(f"{number * 1.005:.3g}")
