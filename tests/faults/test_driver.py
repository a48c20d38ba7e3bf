"""A driver that dies or sleeps: whoever starts the job again goes on where it was, and nothing is done twice."""

import random
import signal
import time

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


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
