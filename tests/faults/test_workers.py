"""Actors and nodes that die while a job runs: it goes on, and every row is there once."""

import random

import pytest

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]


def test_a_job_outlives_its_actors_and_a_node_and_goes_on_with_another(cluster, night):
    job = night(60)
    driver = job.start(cluster.address, "cluster.answerers=2")
    driver.wait_until("answer", rows=8)
    cluster.kill_worker("Decoder")
    cluster.kill_worker("Answerer")
    driver.wait_until("answer", rows=16)
    cluster.kill_node(next(node for node in cluster.nodes if cluster.processes(node, "Answerer")))
    cluster.add_node()
    job.finish(driver)


@pytest.mark.parametrize("stage", ["Decoder", "Answerer"])
def test_actors_of_a_stage_that_die_again_and_again(cluster, night, stage):
    job = night(120)
    driver = job.start(cluster.address, "cluster.answerers=2", "failures.retries=9")
    for rows in range(10, 60, 10):
        driver.wait_until("answer", rows)
        cluster.kill_worker(stage)
    job.finish(driver)


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
