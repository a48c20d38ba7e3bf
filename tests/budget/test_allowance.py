import pytest

from pipeline.budget.allowance import Allowance
from pipeline.budget.cost import PoolSizes
from pipeline.config import BudgetConfig

POOLS = PoolSizes(decoders=4, answerers=2, gpus=1, threads=1)


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({"gpu_hours": 10}, 10 - 2 * 1.0),  # two GPUs for an hour
        ({"usd": 10, "usd_per_gpu_hour": 3}, 10 - 2 * 1.0 * 3),
        ({"deadline": "6h"}, 6 * 3600 - 7200 - 60),
        ({"tokens_per_video": 100}, 100),
    ],
)
def test_a_run_that_goes_on_has_what_earlier_starts_left(given, left):
    allowance = Allowance(BudgetConfig(**given), worked_s=3600, elapsed_s=7200)
    budget = allowance.left(POOLS, elapsed_s=60)
    assert getattr(budget, budget.key) == pytest.approx(left)
    assert allowance.is_begun


def test_starts_that_never_answered_a_row_cost_no_hours():
    allowance = Allowance(BudgetConfig(gpu_hours=1), worked_s=0.0, elapsed_s=9000)
    assert allowance.left(POOLS, 100).gpu_hours == 1
    assert not allowance.is_begun


def test_what_is_used_up_is_as_good_as_nothing_and_rows_done_again_have_their_share():
    assert Allowance(BudgetConfig(gpu_hours=1), worked_s=36_000).left(POOLS, 0).gpu_hours == pytest.approx(0, abs=1e-6)
    assert Allowance(BudgetConfig(gpu_hours=1), share=0.25).left(POOLS, 0).gpu_hours == 0.25
