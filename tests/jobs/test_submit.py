"""`ray job submit` to a real cluster, from a working directory that holds the sources and nothing else."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray  # noqa: F401  # brings psutil

# isort: split
import psutil

from tests.video.samples import write_video

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("generation.max_new_tokens=4", "cluster.decoders=1")
RAY = str(Path(sys.executable).parent / "ray")


def environment() -> dict[str, str]:
    """Ours, without another cluster's address, and without tokens: whether this machine has one must not matter."""
    left_out = ("RAY_ADDRESS", "PYTHONPATH", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster_address():
    """The address of the job server of a cluster that `ray start --head` made; it ends with the tests."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="hv") as folder:
        log = Path(folder, "head.log")
        with log.open("w") as output:
            head = subprocess.Popen(
                [
                    *(RAY, "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}", f"--temp-dir={folder}"),
                    *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                    *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                    *(f"--metrics-export-port={metrics}", f"--object-store-memory={256 * 2**20}"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
            )
        try:
            wait_for_job_server(dashboard, head, log)
            yield f"http://127.0.0.1:{dashboard}"
        finally:
            started = psutil.Process(head.pid).children(recursive=True)
            head.terminate()  # upon which it ends its children, one after the other and with patience
            for left in psutil.wait_procs([*started, psutil.Process(head.pid)], timeout=8)[1]:
                left.kill()
            head.wait(timeout=60)


def wait_for_job_server(port: int, head: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert head.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise AssertionError(f"no job server: {log.read_text()}")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """What a fresh checkout holds of the packages."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("jobs", "pipeline", "pruning"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def submit(address: str, sources: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            *(RAY, "job", "submit", "--address", address, "--working-dir", str(sources), "--"),
            *(sys.executable, "-m", "jobs.caption", *words),
        ],
        cwd=sources.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=580,
    )


def test_a_submitted_job_writes_its_results_and_succeeds(cluster_address, sources, tmp_path):
    for n in range(2):
        write_video(tmp_path / "videos" / f"{n}.mp4", frames=8)
    job = sources / "job.yaml"
    job.write_text(f"task: caption\nmanifest: {tmp_path}/videos\noutput: {tmp_path}/out\n")
    run = submit(cluster_address, sources, "--config", "job.yaml", *SMALL)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 answered of 2" in run.stdout
    [file] = (tmp_path / "out" / "results").rglob("*.parquet")
    assert pq.ParquetFile(file).read(["status"]).to_pylist() == [{"status": "ok"}] * 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("manifest=/no/such/manifest.jsonl", "error: "),
        ("failures.max_failed_share=0.1", "1 of 2 rows failed (50.0%)"),
    ],
)
def test_a_job_that_fails_fails_its_submission(cluster_address, sources, tmp_path, given, told):
    write_video(tmp_path / "videos" / "good.mp4", frames=4)
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    job = sources / "job.yaml"
    job.write_text(f"task: caption\nmanifest: {tmp_path}/videos\noutput: {tmp_path}/out\n")
    run = submit(cluster_address, sources, "--config", "job.yaml", *SMALL, given)
    assert run.returncode != 0
    assert told in run.stdout + run.stderr
