import socket

import pytest
import ray

from jobs.console import Display, run_command
from pipeline.config import ModelConfig
from pipeline.config_load import dump_config, load_config
from pipeline.errors import ClusterError, UserError
from pipeline.model_load import find_model
from pipeline.pools import Pools, actor_pool, fitted, most
from pipeline.progress import Progress
from pipeline.run import _engine_loader
from pipeline.run_cluster import choose_pools, cluster
from tests.video.samples import write_video


@pytest.fixture
def pools_of(monkeypatch):
    """The pools that a job gets on a cluster with the given resources."""

    def choose(resources: dict[str, float], *given: str):
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        return choose_pools(load_config(None, ["manifest=m", "output=o", *given], "caption"))

    return choose


def test_two_cores_are_shared_by_two_decoders_and_the_model(pools_of):
    pools = pools_of({"CPU": 2})
    assert (pools.cpus_per_actor, pools.gpus_per_answerer, pools.threads_per_answerer) == (0.66, 0.0, 1)


def test_a_gpu_is_used_where_there_is_one_unless_the_job_says_cpu(pools_of):
    assert pools_of({"CPU": 16, "GPU": 2}).gpus_per_answerer == 1.0
    assert pools_of({"CPU": 16, "GPU": 2}, "model.device=cpu").gpus_per_answerer == 0.0
    assert pools_of({"CPU": 16, "GPU": 2}, "cluster.gpus_per_answerer=0.5").gpus_per_answerer == 0.5
    assert pools_of({"CPU": 16}, "cluster.gpus_per_answerer=1").gpus_per_answerer == 1.0  # a cluster may grow one


def test_cuda_on_a_cluster_without_gpus_is_the_users_to_change(pools_of):
    with pytest.raises(UserError, match=r"model\.device is cuda"):
        pools_of({"CPU": 16}, "model.device=cuda")


def test_an_actor_without_a_gpu_of_its_own_looks_for_none(pools_of):
    model = find_model(ModelConfig(), lambda _: None)
    assert _engine_loader(model, pools_of({"CPU": 8})).args[1] == "cpu"
    assert _engine_loader(model, pools_of({"CPU": 8, "GPU": 1})).args[1] == "auto"


def test_answerers_share_the_cores_that_decoding_leaves(pools_of):
    assert pools_of({"CPU": 9}, "cluster.answerers=2").threads_per_answerer == 4
    assert pools_of({"CPU": 9}, "cluster.answerers=[1, 4]").threads_per_answerer == 2


def test_a_small_machine_has_room_for_the_most_that_may_come(pools_of):
    assert pools_of({"CPU": 4}, "cluster.answerers=[1, 4]", "cluster.decoders=[2, 4]").cpus_per_actor == 0.5


@pytest.mark.parametrize(
    ("resources", "size", "cpus", "gpus", "initial"),
    [
        ({"CPU": 2}, 5, 0.2, 0, 5),
        ({"CPU": 16}, 4, 1.0, 0, 4),
        ({"CPU": 16}, 32, 1.0, 0, 7),
        ({"CPU": 64, "GPU": 2}, 4, 0.0, 1.0, 2),
        ({"CPU": 64, "GPU": 1}, 4, 0.0, 0.25, 4),
        ({"CPU": 64}, 4, 0.0, 1.0, 1),
        ({}, 8, 1.0, 0, 1),
        ({"CPU": 16}, (2, 6), 1.0, 0, 2),
        ({"CPU": 4}, (3, 6), 0.5, 0, 3),
        ({"CPU": 4}, 2, 1.0, 0, 2),
        ({"CPU": 9}, (5, 6), 1.0, 0, 4),
        ({"CPU": 2}, (2, 6), 0.2, 0, 2),
        ({"CPU": 64, "GPU": 1}, (2, 6), 0.0, 1.0, 1),
    ],
)
def test_a_pool_keeps_what_surely_fits_and_may_grow(monkeypatch, resources, size, cpus, gpus, initial):
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    pool = actor_pool(size, cpus, gpus)
    assert (pool.min_size, pool.initial_size, pool.max_size) == (initial, initial, most(size))


@pytest.mark.parametrize(
    ("cores", "actors", "share"),
    [(2, 3, 0.66), (2, 2, 1.0), (4, 3, 1.0), (4, 7, 0.57), (1, 3, 0.33), (64, 100, 1.0), (0, 3, 1.0)],
)
def test_actors_share_a_small_machine_and_take_a_core_each_on_a_large_one(monkeypatch, cores, actors, share):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": cores})
    pools = fitted(Pools(decoders=actors - 1, answerers=1, batch_size=8))
    assert (pools.cpus_per_actor, pools.cpus_per_answerer) == (share, share)


def test_an_answerer_with_a_gpu_takes_no_core_from_the_decoders(pools_of):
    pools = pools_of({"CPU": 4, "GPU": 2}, "cluster.decoders=4", "cluster.answerers=2")
    assert (pools.cpus_per_actor, pools.cpus_per_answerer, pools.gpus_per_answerer) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cluster.decoders=[4, 2]", "cluster.decoders = a list is not allowed: 4 at least and 2 at most"),
        (
            "cluster.decoders=[0, 2]",
            "cluster.decoders = a list is not allowed: processes that fetch and decode: a whole",
        ),
        ("cluster.answerers=[1, 2, 3]", "[fewest, most]"),
        ("cluster.answerers=[1, two]", "[fewest, most]"),
        ("cluster.answerers=yes", "a truth value is not a number"),
        ("cluster.answerers=0", "a whole number from 1"),
        ("cluster.batch_size=257", "from 1 to 256"),
    ],
)
def test_what_a_pool_cannot_be_is_told_in_a_line(given, told):
    with pytest.raises(UserError) as caught:
        load_config(None, ["manifest=m", "output=o", given], "caption")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_bounds_of_a_pool_survive_the_run_folder(tmp_path):
    config = load_config(None, ["manifest=m", "output=o", "cluster.answerers=[1, 4]"], "caption")
    assert config.cluster.answerers == (1, 4)
    (tmp_path / "config.yaml").write_text(dump_config(config, "0" * 12))
    assert load_config(tmp_path / "config.yaml").cluster == config.cluster


@pytest.fixture
def dead_address(monkeypatch):
    """RAY_ADDRESS points to a port where nobody listens, and no connection is open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("pipeline.doctor.cluster.time.sleep", lambda seconds: None)
    return address


def test_a_cluster_that_does_not_answer_is_a_cluster_error(dead_address):
    with pytest.raises(ClusterError, match=f"nothing answers at {dead_address}"), cluster():
        pytest.fail("connected to nothing")


def test_a_cluster_that_does_not_answer_is_status_3(dead_address, tmp_path, write_manifest, capfd):
    job = tmp_path / "job.yaml"
    manifest = write_manifest([{"uri": str(write_video(tmp_path / "a.mp4", frames=2))}])
    job.write_text(f"task: caption\nmanifest: {manifest}\noutput: {tmp_path}/out\n")
    assert run_command("caption", job, []) == 3
    assert capfd.readouterr().err == f"error: nothing answers at {dead_address} (Connection refused)\n"


def test_without_a_terminal_progress_is_plain_lines(monkeypatch, capfd):
    monkeypatch.setattr("jobs.console._LINE_INTERVAL_S", 0.01)
    with Display() as display:
        display(Progress("answer", rows=12, failed=1, total=96))
        display._ended.wait(0.2)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert set(lines) == {"answering 12 of 96 rows, 1 failed, 0 s"}
