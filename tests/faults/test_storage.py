"""A storage that stutters, breaks off, and goes away: no row is lost, doubled or half-written."""

import pytest

from tests.faults.s3_proxy import EACH, Faults

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_requests_that_fail_are_made_again_and_an_outage_costs_no_row(cluster, night, proxy):
    job = night(60)
    proxy.faults = EACH
    # What is being fetched when the storage goes may fail for good: an error row, and no reason to give up.
    driver = job.start(cluster.address, "failures.max_failed_share=1")
    driver.wait_until("answer", rows=8)
    proxy.go_away(20.0).join()
    assert driver.finish() == 0, driver.error
    job.check(error_codes=("fetch_failed",))
    assert sum(seen.fault is not None for seen in proxy.seen) >= 5


@pytest.mark.parametrize("fault", ["error_500", "slow_down_503", "slow", "reset", "lost_answer", "cut"])
def test_a_fifth_of_the_requests_fails(cluster, night, proxy, fault):
    job = night(100)
    proxy.faults = Faults(**{fault: 0.2}, slow_s=3.0)
    job.finish(job.start(cluster.address, "failures.retries=6"))
    assert sum(seen.fault is not None for seen in proxy.seen) >= 20


@pytest.mark.parametrize("phase", ["plan", "start", "answer"])
def test_a_storage_that_is_away_for_twenty_seconds(cluster, night, proxy, phase):
    job = night(100)
    given = "failures.max_failed_share=1"
    driver = job.start(cluster.address, given)
    driver.wait_until(phase)
    proxy.go_away(20.0).join()
    if driver.finish():  # where it cannot wait for so long it says so, and another start ends the job
        assert driver.status == 3, driver.error
        driver = job.start(cluster.address, given)
        assert driver.finish() == 0, driver.error
    job.check(error_codes=("fetch_failed",))
