import socket

import pytest
import ray

from jobs.console import Display, run_command
from pipeline import run_cluster
from pipeline.config import ModelConfig
from pipeline.config_load import load_config
from pipeline.errors import ClusterError, UserError
from pipeline.graph import _pool
from pipeline.model_load import find_model
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
    assert (pools.cpus_per_actor, pools.gpus_per_answerer, pools.threads_per_answerer) == (0.5, 0.0, 1)


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


@pytest.mark.parametrize(
    ("resources", "size", "cpus", "gpus", "initial"),
    [
        ({"CPU": 2}, 5, 0.2, 0, 5),
        ({"CPU": 16}, 4, 1.0, 0, 4),
        ({"CPU": 16}, 32, 1.0, 0, 7),
        ({"CPU": 64, "GPU": 2}, 4, 1.0, 1.0, 2),
        ({"CPU": 64, "GPU": 1}, 4, 1.0, 0.25, 4),
        ({"CPU": 64}, 4, 1.0, 1.0, 1),
        ({}, 8, 1.0, 0, 1),
    ],
)
def test_a_pool_keeps_what_surely_fits_and_may_grow(monkeypatch, resources, size, cpus, gpus, initial):
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    pool = _pool(size, cpus, gpus)
    assert (pool.min_size, pool.initial_size, pool.max_size) == (initial, initial, size)


@pytest.fixture
def dead_address(monkeypatch):
    """RAY_ADDRESS points to a port where nobody listens, and no connection is open."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(run_cluster, "_CONNECT_ATTEMPTS", 2)
    monkeypatch.setattr(run_cluster.time, "sleep", lambda seconds: None)
    return address


def test_a_cluster_that_does_not_answer_is_a_cluster_error(dead_address):
    with pytest.raises(ClusterError, match=f"nothing answers at {dead_address}"), cluster():
        pytest.fail("connected to nothing")


def test_a_cluster_that_does_not_answer_is_status_3(dead_address, tmp_path, write_manifest, capfd):
    job = tmp_path / "job.yaml"
    manifest = write_manifest([{"uri": str(write_video(tmp_path / "a.mp4", frames=2))}])
    job.write_text(f"task: caption\nmanifest: {manifest}\noutput: {tmp_path}/out\n")
    assert run_command("caption", job, []) == 3
    assert capfd.readouterr().err == f"error: no Ray cluster: nothing answers at {dead_address} (Connection refused)\n"


def test_without_a_terminal_progress_is_plain_lines(monkeypatch, capfd):
    monkeypatch.setattr("jobs.console._LINE_INTERVAL_S", 0.01)
    with Display() as display:
        display(Progress("answer", rows=12, failed=1, total=96))
        display._ended.wait(0.2)
    lines = capfd.readouterr().err.splitlines()
    assert lines
    assert set(lines) == {"answering 12 of 96 rows, 1 failed, 0 s"}
