"""Actors and nodes that die while a job runs: it goes on, and every row is there once."""

import random
import time

import pytest

from tests.faults.cluster import raylets

pytestmark = pytest.mark.timeout(1800)


def test_a_job_outlives_its_actors_and_a_node_and_goes_on_with_another(cluster, night):
    job = night(40)
    driver = job.start(cluster.address, "cluster.decoders=1", "cluster.answerers=2")
    driver.wait_until("answer", rows=8)
    cluster.kill_worker("Decoder")
    cluster.kill_worker("Answerer")
    driver.wait_until("answer", rows=16)
    cluster.kill_node(next(node for node in cluster.nodes if cluster.processes(node, "Answerer")))
    cluster.add_node()
    job.finish(driver)


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["Decoder", "Answerer"])
def test_actors_of_a_stage_that_die_again_and_again(cluster, night, stage):
    job = night(120)
    driver = job.start(cluster.address, "cluster.answerers=2", "failures.retries=9")
    for rows in range(10, 60, 10):
        driver.wait_until("answer", rows)
        cluster.kill_worker(stage)
    job.finish(driver)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_nodes_come_and_go(cluster, night, seed):
    chance = random.Random(seed)
    job = night(160)
    driver = job.start(cluster.address, "cluster.answerers=2", seconds=0.3)
    for rows in (10, 60, 110):
        driver.wait_until("answer", rows)
        cluster.add_node()
        cluster.kill_node(chance.choice(cluster.nodes))
    job.finish(driver)


@pytest.mark.soak
def test_answerers_come_with_the_nodes_that_have_room_for_them(environment, night):
    with raylets(environment, workers=0, cpus=2) as cluster:
        cluster.add_node(gpus=1)
        job = night(120)
        given = [
            "cluster.decoders=1",
            "cluster.answerers=[1, 2]",
            "cluster.gpus_per_answerer=1",
            "cluster.batch_size=2",
        ]
        driver = job.start(cluster.address, *given, seconds=0.5)
        driver.wait_until("answer", rows=8)
        assert len(cluster.workers("Answerer")) == 1
        cluster.add_node(gpus=1)
        wait_for_answerers(2, cluster, driver)
        job.finish(driver)


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["Decoder", "Answerer"])
def test_what_a_node_had_that_nothing_replaces_is_done_by_the_other(environment, night, stage):
    with raylets(environment, workers=2, cpus=1) as cluster:  # one actor fills a node
        job = night(60)
        given = ["cluster.decoders=1", "cluster.answerers=1", "cluster.batch_size=2", "failures.stall_timeout_s=40"]
        driver = job.start(cluster.address, *given, seconds=0.5)
        driver.wait_until("answer", rows=8)
        cluster.kill_node(next(node for node in cluster.nodes if cluster.processes(node, f"({stage})")))
        job.finish(driver)


def wait_for_answerers(count: int, cluster, driver) -> None:
    deadline = time.monotonic() + 180
    while len(cluster.workers("Answerer")) < count:
        assert driver.status is None, driver.error
        assert time.monotonic() < deadline, f"no {count} answerers: {driver.moments[-1:]}"
        time.sleep(0.1)
