"""What one question costs under a plan, and which retention of a method costs a given amount."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pruning import Pruner, StagePlan, UnreachableRetentionError, VideoGrid
from pruning.cost import DecoderShape, flops_ratio

# One token more or less moves the FLOPs of a small video by about this share: nothing comes nearer.
TOLERANCE = 0.02
_STEPS = 40


@dataclass(frozen=True)
class Workload:
    """The video and the prompt that all questions are like: token grid, decoder, mean tokens of text."""

    grid: VideoGrid
    shape: DecoderShape
    text_tokens: int

    def plan(self, pruner: Pruner, retention: float) -> StagePlan:
        """The method's plan; UnreachableRetentionError where it has none."""
        return pruner.plan(self.grid, self.shape.layers, retention)

    def flops(self, plan: StagePlan) -> float:
        """Prefill FLOPs over those of the unpruned video."""
        return flops_ratio(self.shape, plan, self.text_tokens)


@dataclass(frozen=True)
class Budget:
    """What a method is asked for in a cell, and the plan that follows from it."""

    retention: float
    plan: StagePlan


@dataclass(frozen=True)
class Unreachable:
    """A budget that a method cannot meet; `minimum` is the least that it can, in the comparison's unit."""

    minimum: float


def at_retention(pruner: Pruner, workload: Workload, retention: float) -> Budget | Unreachable:
    """The budget at a mean-over-layers retention; the minimum of an unreachable one is a retention."""
    try:
        return Budget(retention, workload.plan(pruner, retention))
    except UnreachableRetentionError as error:
        return Unreachable(error.minimum)


def at_flops(
    pruner: Pruner,
    workload: Workload,
    target: float,
    flops: Callable[[Budget], float] | None = None,
    tolerance: float = 0.0,
) -> Budget | Unreachable:
    """The budget whose FLOPs ratio is nearest to `target`; the minimum of an unreachable one is a FLOPs ratio.

    By bisection on the retention, since FLOPs grow with it, in steps of a token. `flops` says what a budget
    costs, by default what its plan says; a cost within `tolerance` (relative) is near enough to stop.
    """
    flops = flops or (lambda budget: workload.flops(budget.plan))
    above = Budget(1.0, workload.plan(pruner, 1.0))
    cost_above = flops(above)
    if cost_above <= target:
        return above
    below: tuple[float, Budget] | None = None
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        budget = at_retention(pruner, workload, middle)
        if isinstance(budget, Unreachable):
            low = middle
            continue
        # Many retentions round to the same counts: those need not be costed again.
        cost = cost_above if budget.plan == above.plan else flops(budget)
        if abs(cost / target - 1) < tolerance:
            return budget
        if cost < target:
            low, below = middle, (cost, budget)
        else:
            high, above, cost_above = middle, budget, cost
    if below is not None and target - below[0] < cost_above - target:
        return below[1]
    return above if cost_above <= target * (1 + TOLERANCE) else Unreachable(cost_above)
