"""Jobs sent to a real cluster, from a working directory that holds the sources and nothing else."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
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
    left_out = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONPATH", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's `python` is the one that its node finds
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PATH": path}


def free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    for one in with_sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_sockets]
    for one in with_sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def cluster():
    """A cluster that `ray start --head` made: the address of its job server, and its folder. It ends with the tests."""
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
            yield f"http://127.0.0.1:{dashboard}", Path(folder)
        finally:
            started = psutil.Process(head.pid).children(recursive=True)
            head.terminate()  # upon which it ends its children, one after the other and with patience
            for left in psutil.wait_procs([*started, psutil.Process(head.pid)], timeout=8)[1]:
                left.kill()
            head.wait(timeout=60)


@pytest.fixture
def cluster_address(cluster):
    return cluster[0]


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


@pytest.fixture
def job_file(sources, tmp_path):
    """A caption job over one good and one bad video, in the working directory."""
    write_video(tmp_path / "videos" / "good.mp4", frames=4)
    (tmp_path / "videos" / "bad.mp4").write_text("not a video")
    job = sources / "job.yaml"
    job.write_text(f"task: caption\nname: small\nmanifest: {tmp_path}/videos\noutput: {tmp_path}/out\n")
    return job


def start(sources: Path, *words: str, **variables: str) -> subprocess.Popen:
    """`hieravid submit …` as a user starts it in the working directory."""
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.hieravid", "submit", *words],
        cwd=sources,
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def submit(sources: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    process = start(sources, *words, **variables)
    out, err = process.communicate(timeout=580)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def rows_of(output: Path) -> list[dict]:
    return [row for file in output.rglob("results/**/*.parquet") for row in pq.ParquetFile(file).read().to_pylist()]


def test_ray_job_submit_of_a_checkout_succeeds(cluster_address, sources, tmp_path):
    for n in range(2):
        write_video(tmp_path / "videos" / f"{n}.mp4", frames=8)
    (sources / "job.yaml").write_text(f"task: caption\nmanifest: {tmp_path}/videos\noutput: {tmp_path}/out\n")
    command = [RAY, "job", "submit", "--address", cluster_address, "--working-dir", str(sources), "--"]
    command += [sys.executable, "-m", "jobs.caption", "--config", "job.yaml", *SMALL]
    run = subprocess.run(
        command, cwd=sources.parent, env=environment(), capture_output=True, text=True, timeout=580, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 answered of 2" in run.stdout
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["ok"] * 2


def hieravid(sources: Path, *words: str, status: int = 0) -> str:
    """What the installed command prints."""
    command = [str(Path(sys.executable).parent / "hieravid"), *words]
    run = subprocess.run(command, cwd=sources, env=environment(), capture_output=True, text=True, timeout=580)
    assert run.returncode == status, run.stdout + run.stderr
    return run.stdout


def test_the_path_of_a_newcomer(cluster_address, sources, job_file, tmp_path):
    job = ("--config", "job.yaml", *SMALL, "failures.max_failed_share=0.5")
    output = str(tmp_path / "out")

    told = hieravid(sources, "doctor", *job, "--address", cluster_address, "--json")
    assert {one["status"] for one in json.loads(told)["checks"]} <= {"ok", "warn", "skipped"}

    plan = json.loads(hieravid(sources, "plan", *job, "--json"))
    assert (plan["rows"], plan["videos"], plan["sampled_videos"]) == (2, 2, 2)
    assert plan["sample_failures"] == {"not_a_video": 1}

    assert "1 answered of 2" in hieravid(sources, "submit", "caption", *job, "--address", cluster_address)
    [run] = json.loads(hieravid(sources, "status", output, "--json"))["runs"]
    assert (run["rows"], run["left"], run["state"]) == (2, 0, "done")
    [ok] = [row for row in rows_of(tmp_path / "out") if row["status"] == "ok"]
    assert ok["video_tokens"] == plan["chosen"]["video_tokens"]

    [failure] = json.loads(hieravid(sources, "query", output, "failures", "--format", "json"))
    assert (failure["error_code"], failure["rows"]) == ("not_a_video", 1)


def test_a_submission_ends_as_its_job_does_and_tells_no_secret(cluster, sources, job_file, tmp_path):
    cluster_address, folder = cluster
    secret = "planted-Secret-9b1d"
    (sources / ".env").write_text(f"AWS_SECRET_ACCESS_KEY={secret}")
    run = submit(
        *(sources, "caption", "--config", "job.yaml", "--address", cluster_address),
        *(*SMALL, "generation.prompt=What's in it; $HOME or `this`?", "failures.max_failed_share=0.5"),
        **{"AWS_SECRET_ACCESS_KEY": secret, "HF_TOKEN": secret},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1 answered of 2" in run.stdout
    assert "all nodes must see it" in run.stderr
    rows = rows_of(tmp_path / "out")
    assert sorted(row["status"] for row in rows) == ["error", "ok"]
    assert {row["prompt"] for row in rows} == {"What's in it; $HOME or `this`?"}
    jobs = json.loads(urllib.request.urlopen(f"{cluster_address}/api/jobs/").read())
    [job] = [job for job in jobs if job["submission_id"] in run.stderr]  # others sent jobs to this cluster too
    assert job["submission_id"].startswith("small-")
    assert job["entrypoint"] == "python -m jobs.caption --config hieravid-job.yaml"
    assert {"name", "task", "manifest", "output", "config_sha256", "version"} <= job["metadata"].keys()
    assert (job["metadata"]["name"], job["metadata"]["output"]) == ("small", f"{tmp_path}/out")
    assert set(job["runtime_env"]) <= {"working_dir", "_ray_release", "_ray_commit"}
    assert secret not in run.stdout + run.stderr + json.dumps(jobs)
    arrived = [path for path in (folder / "session_latest").resolve().rglob("*") if path.is_file()]
    assert "hieravid-job.yaml" in {path.name for path in arrived}
    assert ".env" not in {path.name for path in arrived}
    assert [path for path in arrived if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        ("manifest=/no/such/manifest.jsonl", 2, "error: cannot read /no/such/manifest.jsonl"),
        ("failures.max_failed_share=0.1", 1, "1 of 2 rows failed (50.0%)"),
    ],
)
def test_a_job_that_fails_hands_on_its_exit_status(cluster_address, sources, job_file, given, status, told):
    run = submit(sources, "caption", "--config", "job.yaml", "--address", cluster_address, *SMALL, given)
    assert run.returncode == status, run.stdout + run.stderr
    assert told in run.stdout


def test_an_interrupted_submission_leaves_the_job_at_work(cluster_address, sources, job_file, tmp_path):
    words = ("caption", "--config", "job.yaml", "--address", cluster_address, *SMALL, "failures.max_failed_share=0.5")
    process = start(sources, *words)
    for line in process.stderr:
        if "sent " in line:
            job_id = line.partition(":")[0]
            break
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert f"the job {job_id} goes on" in err
    assert f"ray job logs --follow --address {cluster_address} {job_id}" in err
    followed = subprocess.run(
        shlex.split(next(line for line in err.splitlines() if line.startswith("follow")).partition(" ")[2]),
        env=environment() | {"PATH": f"{Path(RAY).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert "1 answered of 2" in followed.stdout
    assert len(rows_of(tmp_path / "out")) == 2
