"""A job's forecast made where its answerers will run: on a worker of the cluster, with an answerer's GPU."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.budget.allowance import Allowance
from pipeline.budget.cost import CostModel, PoolSizes
from pipeline.budget.forecast import forecast
from pipeline.config import BudgetConfig, JobConfig
from pipeline.errors import ClusterError, UserError, one_line
from pipeline.model_load import JobModel
from pipeline.pools import Pools


@dataclass(frozen=True)
class Settled:
    """The retention that a run begins with, and what it was worked out from."""

    retention: float
    costs: CostModel


def settle_budget(
    config: JobConfig, model: JobModel, pools: Pools, rows: int, allowance: Allowance, elapsed_s: float
) -> Settled:
    """The retention that an allowance comes to for so many rows, with videos timed on the connected cluster.

    `elapsed_s` have passed since the start. Raises UserError where the budget is out of reach, or whatever else
    `forecast` refuses; ClusterError where storage or cluster fail.
    """
    # As the answerers find it: a folder by its absolute path, a remote model in the node's cache.
    job = config.model_copy(update={"model": model.settings})
    task = ray.remote(num_cpus=pools.cpus_per_answerer, num_gpus=pools.gpus_per_answerer, max_retries=2)(_settle)
    try:
        return ray.get(task.remote(job, rows, allowance, elapsed_s))
    except RayTaskError as error:
        if isinstance(error.cause, UserError | ClusterError):
            raise error.cause from None
        raise ClusterError(f"the budget could not be worked out: {one_line(str(error.cause))}") from error
    except RayError as error:
        raise ClusterError(f"the budget could not be worked out: {one_line(str(error))}") from error


def _settle(config: JobConfig, rows: int, allowance: Allowance, elapsed_s: float) -> Settled:
    def allow(pools: PoolSizes) -> tuple[BudgetConfig, bool]:
        return allowance.left(pools, elapsed_s), not allowance.is_begun

    plan = forecast(config, told=lambda step: None, rows=rows, allow=allow)
    return Settled(plan.chosen.retention, plan.costs)
