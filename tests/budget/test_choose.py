"""Budgets against a job whose cost is known: 10 hours of vision and generation, 30 more at retention 1."""

from types import SimpleNamespace

import pytest

from pipeline.budget.choose import choose
from pipeline.budget.cost import PoolSizes, budget_seconds
from pipeline.config import BudgetConfig
from pipeline.errors import UserError


def at(retention):
    hours = 10 + 30 * retention
    tokens = SimpleNamespace(kept=500 * 1000 * retention, rows=500.0)
    return SimpleNamespace(
        tokens=tokens,
        flops_ratio=retention**1.1,
        gpu_hours=hours,
        duration_s=hours * 3600 / 4,
        usd=2 * hours,
        bottleneck="model",
    )


def chosen(least=1e-4, **budget):
    return choose(BudgetConfig(**budget), at, least).retention


def refusal(least=1e-4, **budget):
    with pytest.raises(UserError) as caught:
        chosen(least, **budget)
    return str(caught.value)


@pytest.mark.parametrize(
    ("budget", "retention"),
    [
        ({"retention": 0.3}, 0.3),
        ({"tokens_per_video": 250}, 0.25),
        ({"flops_share": 0.5**1.1}, 0.5),
        ({"gpu_hours": 25}, 0.5),
        ({"deadline": "6h15m"}, 0.5),
        ({"usd": 50, "usd_per_gpu_hour": 2}, 0.5),
    ],
)
def test_the_most_that_the_budget_pays_for_is_kept(budget, retention):
    assert chosen(**budget) == pytest.approx(retention, abs=1e-5)


def test_bounds_hold_from_both_sides():
    assert chosen(gpu_hours=1000) == 1.0
    assert chosen(gpu_hours=1000, max_retention=0.4) == 0.4
    assert "at a retention of 0.3 the job still takes 19 hours" in refusal(gpu_hours=18, min_retention=0.3)


def test_a_budget_below_the_floor_is_refused_with_one_that_would_do():
    told = refusal(gpu_hours=11)
    assert told.startswith("budget.gpu_hours = 11 is out of reach")
    least = float(told.partition("still takes ")[2].split()[0])
    assert chosen(gpu_hours=least) == pytest.approx(0.05, abs=1e-3)


def test_a_method_s_own_least_is_the_floor_where_it_is_higher():
    assert "at a retention of 0.2" in refusal(least=0.2, tokens_per_video=100)
    assert "keeps at least 0.2" in refusal(least=0.2, tokens_per_video=100, max_retention=0.1)


def test_hours_of_gpus_and_their_price_are_a_length_of_time():
    pools = PoolSizes(decoders=2, answerers=2, gpus=2.0, threads=1)
    assert budget_seconds(BudgetConfig(gpu_hours=8), pools) == 2 * 3600
    assert budget_seconds(BudgetConfig(usd=16, usd_per_gpu_hour=2), pools) == 2 * 3600
    assert budget_seconds(BudgetConfig(deadline="90m"), pools) == 5400
    assert budget_seconds(BudgetConfig(retention=0.3), pools) is None
    assert budget_seconds(BudgetConfig(gpu_hours=8), PoolSizes(2, 2, 0.0, 1)) == 4 * 3600
