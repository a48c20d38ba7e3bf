"""A driver that dies or sleeps: whoever starts the job again goes on where it was, and nothing is done twice."""

import random
import signal
import time

import pytest

from tests.faults.s3_proxy import EACH

pytestmark = pytest.mark.timeout(1800)


def test_a_killed_job_goes_on_also_over_a_storage_that_stutters_and_goes_away(cluster, night, proxy):
    job = night(40)
    # What is being fetched when the storage goes may fail for good: an error row, and no reason to give up.
    given = ["cluster.decoders=1", "failures.max_failed_share=1"]
    first = job.start(cluster.address, *given)
    first.wait_until("answer", rows=8)
    first.kill()
    before, answered = job.committed(), len(job.answered())
    assert 0 < len(before) < 40

    proxy.faults = EACH
    second = job.start(cluster.address, *given)
    second.wait_until("answer", rows=8)
    proxy.go_away(20.0).join()
    assert second.finish() == 0, second.error
    after = {row["item_id"]: row for row in job.check(error_codes=("fetch_failed",))}
    assert [after[row["item_id"]] for row in before] == before
    assert not {row["prompt"] for row in before} & set(job.answered()[answered:])
    assert sum(seen.fault is not None for seen in proxy.seen) >= 5


@pytest.mark.soak
def test_a_job_whose_driver_was_killed_goes_on(cluster, night, proxy):
    job = night(40)
    first = job.start(cluster.address)
    first.wait_until("answer", rows=12)
    first.kill()
    before, answered, requests = job.committed(), len(job.answered()), len(proxy.seen)
    assert 0 < len(before) < 40

    job.finish(job.start(cluster.address))
    after = {row["item_id"]: row for row in job.committed()}
    assert [after[row["item_id"]] for row in before] == before
    assert not {row["prompt"] for row in before} & set(job.answered()[answered:])
    fetched = {seen.path.split("?")[0] for seen in proxy.seen[requests:]}
    assert not {row["uri"].removeprefix("s3:/") for row in before} & fetched


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_a_job_whose_driver_is_killed_ten_times_at_any_moment(cluster, night, seed):
    chance = random.Random(seed)
    job = night(240)
    for _ in range(10):
        driver = job.start(cluster.address, seconds=0.3)
        driver.wait_until(chance.choice(["plan", "start", "answer", "answer"]))
        time.sleep(chance.uniform(0, 5))
        assert driver.status is None, "it should have been killed in the middle"
        driver.kill()
    job.finish(job.start(cluster.address))


@pytest.mark.soak
def test_a_driver_that_slept_too_long_stops_and_its_successor_ends_the_job(cluster, night):
    job = night(80)
    sleeper = job.start(cluster.address, seconds=1.0)
    sleeper.wait_until("answer", rows=4)
    sleeper.send(signal.SIGSTOP)
    successor = job.start(cluster.address, seconds=0.5)
    successor.wait_until("answer", rows=4)
    sleeper.send(signal.SIGCONT)
    assert sleeper.finish() == 3
    assert "lease" in sleeper.error
    job.finish(successor)
