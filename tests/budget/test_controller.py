"""A stub whose cost follows tokens: a row at retention r takes STEADY seconds and WHOLE * r more."""

from itertools import pairwise

import pytest

from pipeline.budget.controller import LARGEST_STEP, Controller, RowCosts

STEADY, WHOLE, ROWS = 0.4, 1.6, 600
POINTS = [0.05 + 0.95 * n / 19 for n in range(20)]


def plan(steady=1.0, pruned=1.0, decode_s=0.0, points=POINTS):
    """What the plan believed, as factors of the truth."""
    return RowCosts(STEADY * steady, decode_s, points, [WHOLE * r * pruned for r in points])


def noise(row):
    return 1 + 0.3 * ((row * 37 % 11) - 5) / 5


def run(costs, budget_s, start, drift=0.0, idle=1.0, rows=ROWS):
    """All rows one by one; returns the seconds that they took and the retention of each."""
    controller = Controller(costs, rows, budget_s, start)
    spent, got, retention = 0.0, [], start
    for row in range(rows):
        scale = noise(row) * (1 + drift * row / rows)
        steady, pruned = STEADY * scale, WHOLE * retention * scale
        spent += (steady + pruned) * idle
        got.append(retention)
        retention = controller.add(retention, steady, pruned, 0.0, spent)
    return spent, got


UNCONSTRAINED = ROWS * (STEADY + WHOLE)
BUDGET = 0.6 * UNCONSTRAINED


@pytest.mark.parametrize(("steady", "pruned"), [(1, 1), (2, 2), (0.5, 0.5), (1, 2), (1, 0.5), (2, 0.5), (0.5, 2)])
def test_a_budget_of_hours_is_used_up_and_not_passed_however_wrong_the_profile(steady, pruned):
    costs = plan(steady, pruned)
    believed = (BUDGET / ROWS - costs.steady_s) / (WHOLE * pruned)
    spent, got = run(costs, BUDGET, min(1.0, max(0.05, believed)))
    assert len(got) == ROWS
    assert spent == pytest.approx(BUDGET, rel=0.1)
    assert all(0.05 <= r <= 1 for r in got)


@pytest.mark.parametrize("drift", [1.0, -0.5])
def test_costs_that_drift_are_followed(drift):
    budget = 0.6 * ROWS * (STEADY + WHOLE) * (1 + drift / 2)
    spent, got = run(plan(), budget, 0.5, drift)
    assert spent == pytest.approx(budget, rel=0.1)
    assert (got[-1] < got[ROWS // 8]) == (drift > 0)


def test_workers_that_wait_a_third_of_the_time_are_reckoned_with():
    spent, _ = run(plan(), BUDGET, 0.5, idle=1.5)
    assert spent == pytest.approx(BUDGET, rel=0.1)


def test_a_small_job_ends_near_its_budget_too():
    budget = BUDGET * 48 / ROWS
    spent, _ = run(plan(2, 2), budget, 0.2, rows=48)
    assert spent == pytest.approx(budget, rel=0.1)


def test_a_budget_that_pays_for_all_keeps_everything_and_one_that_pays_for_nothing_keeps_the_least():
    assert set(run(plan(), 2 * UNCONSTRAINED, 1.0)[1]) == {1.0}
    assert run(plan(), 0.1 * UNCONSTRAINED, 0.5)[1][-1] == pytest.approx(0.05, abs=1e-3)


def test_where_decoding_takes_the_time_nothing_more_is_pruned():
    """Rows that decode for 3 s and are answered in less: no retention makes them faster, so all is kept."""
    costs = plan(decode_s=3.0)
    controller = Controller(costs, ROWS, 0.5 * ROWS * 3.0, 0.3)
    for row in range(ROWS):
        controller.add(controller.retention, STEADY, WHOLE * controller.retention, 3.0, 3.0 * (row + 1))
    assert controller.retention == pytest.approx(1.0, abs=1e-3)


def test_the_retention_moves_in_small_steps():
    got = run(plan(2, 2), BUDGET, 0.5)[1]
    steps = [after / before for before, after in pairwise(got)]
    assert 1 < max(steps) <= LARGEST_STEP + 1e-3
    assert 1 > min(steps) >= 1 / LARGEST_STEP - 1e-3


def test_the_same_rows_give_the_same_retentions():
    assert run(plan(), BUDGET, 0.5) == run(plan(), BUDGET, 0.5)


def test_rows_that_failed_leave_their_share_to_the_others():
    controller = Controller(plan(), 100, 100 * (STEADY + WHOLE * 0.5), 0.5)
    controller.skip(50)
    for row in range(8):
        controller.add(0.5, STEADY, WHOLE * 0.5, 0.0, (STEADY + WHOLE * 0.5) * (row + 1))
    assert controller.retention > 0.6


def test_a_single_point_is_a_constant_cost():
    assert RowCosts(1.0, 0.0, [1.0], [2.0]).pruned_at(0.3) == 2.0
