"""The RayJob's entrypoint through `ray job submit`, watched by a real Prometheus: every panel has something to show."""

import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import ray  # noqa: F401  # brings psutil

# isort: split
import psutil
import yaml

from tests.infra.files import ROOT, load, schedule
from tests.infra.panels import panels
from tests.video.samples import write_video

PROMETHEUS = shutil.which("prometheus")
PROGRAMS = Path(sys.executable).parent
ROWS = 150
PATIENCE_S = 300.0
pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        PROMETHEUS is None, reason="no prometheus here: names and labels are checked, not what they show"
    ),
]


def environment() -> dict[str, str]:
    left_out = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = f"{PROGRAMS}:{os.environ['PATH']}"
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PATH": path}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def wait_for(port: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + PATIENCE_S
    with socket.socket() as probe:
        while probe.connect_ex(("127.0.0.1", port)) != 0:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.5)


def end(process: subprocess.Popen) -> None:
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    for left in psutil.wait_procs(started, timeout=8)[1]:
        left.kill()
    process.wait(timeout=60)


@pytest.fixture
def head():
    """A cluster by `ray start --head`, as KubeRay starts one: the address of its job server, the exporter's port."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="hv") as folder:
        process = subprocess.Popen(
            [
                *(PROGRAMS / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={gcs}"),
                *(f"--temp-dir={folder}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
                *(f"--metrics-export-port={metrics}", f"--object-store-memory={256 * 2**20}"),
            ],
            stdout=subprocess.DEVNULL,
            env=environment(),
        )
        try:
            wait_for(dashboard, process)
            yield f"http://127.0.0.1:{dashboard}", metrics
        finally:
            end(process)


@pytest.fixture
def prometheus(head, tmp_path):
    """The address of a Prometheus that scrapes the head and follows our alerts."""
    [port] = free_ports(1)
    rules = {"groups": load("monitoring/rules.yaml")["spec"]["groups"]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    target = {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{head[1]}"]}]}
    settings = {"global": {"scrape_interval": "1s"}, "rule_files": ["rules.yaml"], "scrape_configs": [target]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    process = subprocess.Popen(
        [
            *(PROMETHEUS, f"--config.file={tmp_path}/prometheus.yaml", f"--storage.tsdb.path={tmp_path}/data"),
            *(f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"),
        ]
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def asked(address: str, path: str, **given: str | float) -> dict:
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(given)}", timeout=60) as reply:
        return json.load(reply)["data"]


def has_data(address: str, query: str, since: float) -> bool:
    span = asked(address, "query_range", query=query, start=since, end=time.time(), step=1)
    return any(math.isfinite(float(value)) for series in span["result"] for _, value in series["values"])


def test_the_entrypoint_runs_as_a_ray_job_and_all_panels_show_it(head, prometheus, tmp_path):
    video = str(write_video(tmp_path / "a.mp4", frames=40))
    rows = [{"uri": video, "start_s": n / 1000} for n in range(ROWS)] + [{"uri": str(tmp_path / "none.mp4")}]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"manifest={tmp_path}/manifest.jsonl", f"output={tmp_path}/out", "model.source=builtin:tiny"]
    given += ["cluster.decoders=1", "cluster.answerers=1", "cluster.gpus_per_answerer=0", "cluster.rows_per_shard=16"]
    entrypoint = shlex.split(schedule()["spec"]["jobTemplate"]["entrypoint"])
    entrypoint[entrypoint.index("--config") + 1] = str(ROOT / "configs" / "nightly-caption.yaml")

    since = time.time()
    submitted = [PROGRAMS / "ray", "job", "submit", "--address", head[0], "--", *entrypoint, *given]
    done = subprocess.run(submitted, env=environment(), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ROWS} answered of {ROWS + 1}" in done.stdout

    without = [title for title, query in panels() if not has_data(prometheus, query, since)]
    assert without == []
    [group] = asked(prometheus, "rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert not any(rule.get("lastError") for rule in group["rules"])
