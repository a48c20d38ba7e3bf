import math
from statistics import NormalDist
from types import SimpleNamespace

import pytest

from pipeline.error_budget import ErrorBudget, Standing, wilson_lower_bound


def exceeded(rows, failed, *, total, refused=0, standing=(0, 0), limit=0.05):
    collector = SimpleNamespace(rows=rows + refused, failed=failed + refused, refused=refused, total=total + refused)
    return ErrorBudget(limit, collector, Standing(*standing)).is_exceeded()


@pytest.mark.parametrize(("failed", "rows"), [(1, 200), (20, 200), (200, 200), (700, 10_000)])
def test_the_bound_is_the_share_that_such_a_sample_is_just_too_much_for(failed, rows):
    bound, seen = wilson_lower_bound(failed, rows), failed / rows
    assert 0 < bound < seen
    assert (seen - bound) / math.sqrt(bound * (1 - bound) / rows) == pytest.approx(NormalDist().inv_cdf(0.99))


def test_without_a_failure_the_bound_is_none_at_all():
    assert wilson_lower_bound(0, 200) == 0


def test_nothing_is_judged_from_a_few_rows():
    assert not exceeded(199, 199, total=10_000)
    assert exceeded(200, 200, total=10_000)


def test_a_share_that_may_be_chance_is_none():
    assert not exceeded(200, 15, total=10_000)  # 7.5 %, where 5 % are allowed
    assert exceeded(2_000, 150, total=10_000)


def test_what_is_certain_counts_whatever_the_rest_does():
    assert not exceeded(990, 50, total=1_000)
    assert exceeded(990, 51, total=1_000)


def test_refused_rows_are_a_part_of_the_manifest_and_not_of_the_sample():
    assert not exceeded(200, 0, total=9_700, refused=300)
    assert exceeded(200, 0, total=9_000, refused=1_000)


def test_a_retry_of_failed_rows_is_judged_by_the_whole_run():
    assert not exceeded(200, 150, total=300, standing=(9_700, 100))
    assert exceeded(200, 150, total=300, standing=(9_700, 490))


def test_a_job_that_allows_every_failure_never_stops():
    assert not exceeded(1_000, 1_000, total=1_000, limit=1.0)
