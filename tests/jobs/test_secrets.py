"""Secrets in the environment, in a manifest and in a config reach no file, no log, no message and no job metadata."""

import http.server
import json
import os
import secrets
import shutil
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

from jobs.console import run_command
from pipeline.config_load import load_config
from pipeline.errors import UserError
from tests.jobs.conftest import BUCKET
from tests.loopback import serving
from tests.video.samples import write_bad_files, write_video

ROOT = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
IN_ENVIRONMENT = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "ARCHIVE_API_KEY", "DATABASE_PASSWORD")
REFUSED_URIS = {  # each keeps its place for a secret
    "password": "https://archive:{}@videos.example.com/a.mp4",
    "s3 key": "s3://AKIDEXAMPLE:{}@archive/a.mp4",
    "encoded user": "s3%3A//user%3A{}%40archive/a.mp4",
    "signature": "s3://archive/a.mp4?X-Amz-Credential=AKID&X-Amz-Signature={}",
    "token": "https://videos.example.com/a.mp4?token={}",
    "file token": "file:///videos/a.mp4?access_token={}",
    "fragment": "s3://archive/a.mp4#sig={}",
}


def plant(names) -> dict[str, str]:
    return {name: f"planted{secrets.token_hex(14)}" for name in names}


def assert_none_in(planted: dict[str, str], texts: dict[str, str]) -> None:
    found = [(name, place) for place, text in texts.items() for name, value in planted.items() if value in text]
    assert not found, found


def files_below(folder: Path) -> dict[str, str]:
    """What each file holds, damaged characters and all; sockets and pipes are none."""
    return {
        str(path.relative_to(folder)): path.read_bytes().decode("latin-1")
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def objects_below(files, root: str) -> dict[str, str]:
    """What each object holds; of a Parquet file the values and what it says of itself, which lie packed in it."""
    texts = {}
    for name in files.find(root):
        texts[name] = files.cat(name).decode("latin-1")
        if name.endswith(".parquet"):
            table = pq.read_table(name, filesystem=files)
            texts[f"{name} values"] = f"{table.to_pylist()} {table.schema.metadata} {table.column_names}"
    return texts


@pytest.fixture
def environment(monkeypatch):
    """Secrets in this process's environment, by the variable's name."""
    planted = plant(IN_ENVIRONMENT)
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return planted


@pytest.fixture
def talkative_storage(monkeypatch):
    """An S3 endpoint that refuses every request and repeats its headers, signature included, in the reason."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def refuse(self) -> None:
            told = " ".join(f"{name}={value}" for name, value in self.headers.items())
            body = f"<Error><Code>AccessDenied</Code><Message>no: {told}</Message></Error>".encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = refuse

        def log_message(self, *_: object) -> None:
            pass

    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        yield


@pytest.mark.usefixtures("talkative_storage")
@pytest.mark.parametrize("key", ["manifest", "output", "model.source", "config"])
def test_a_storage_that_repeats_a_request_gives_no_secret_away(environment, tmp_path, capfd, key):
    write_video(tmp_path / "videos" / "a.mp4", frames=4)
    given = {"manifest": f"{tmp_path}/videos", "output": f"{tmp_path}/out"}
    config = tmp_path / "job.yaml"
    config.write_text("task: caption\n")
    place = f"s3://archive/{key}/thing.jsonl"
    if key == "config":
        config = place
    else:
        given[key] = place
    status = run_command("caption", config, [f"{name}={value}" for name, value in given.items()])
    told = capfd.readouterr()
    assert status == 2
    assert place in told.err
    assert_none_in(environment, {"stdout": told.out, "stderr": told.err, **files_below(tmp_path)})


def test_where_nothing_listens_no_secret_is_told(environment, monkeypatch, tmp_path, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        secret = plant(["endpoint"])
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://u:{secret['endpoint']}@127.0.0.1:{taken.getsockname()[1]}")
        status = run_command("caption", None, ["manifest=s3://archive/m.jsonl", f"output={tmp_path}/out"])
    told = capfd.readouterr()
    assert status == 3
    assert "s3://archive/m.jsonl" in told.err
    assert_none_in(environment | secret, {"stdout": told.out, "stderr": told.err})


@pytest.mark.parametrize("key", ["manifest", "output", "model.source", "pruning.calibration", "video.frames", "name"])
@pytest.mark.parametrize("form", REFUSED_URIS)
def test_a_config_with_a_secret_in_a_uri_is_refused_without_showing_it(key, form):
    planted = plant([key])
    given = {"manifest": "m.jsonl", "output": "out", key: REFUSED_URIS[form].format(planted[key])}
    with pytest.raises(UserError) as refused:
        load_config(None, [f"{name}={value}" for name, value in given.items()], "caption")
    assert key.partition(".")[0] in str(refused.value)
    assert_none_in(planted, {"message": str(refused.value)})


@pytest.mark.parametrize(
    "text",
    [
        "api_key: {}",
        "model: {{token: {}}}",
        "aws_secret_access_key: {}",
        "model: {{hf_token: {}",
        "password: *{}",
        "password: !{}",
        "password: &{}",
    ],
)
def test_a_secret_where_a_job_file_has_no_place_for_it_is_not_shown(tmp_path, text):
    planted = plant(["value"])
    path = tmp_path / "job.yaml"
    path.write_text(text.format(planted["value"]) + "\n")
    with pytest.raises(UserError) as refused:
        load_config(path, ["manifest=m.jsonl", "output=out"], "caption")
    assert_none_in(planted, {"message": str(refused.value)})


@pytest.mark.parametrize("form", REFUSED_URIS)
def test_a_secret_in_the_address_of_the_job_file_is_not_shown(form):
    planted = plant(["address"])
    with pytest.raises(UserError) as refused:
        load_config(REFUSED_URIS[form].format(planted["address"]))
    assert_none_in(planted, {"message": str(refused.value)})


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    try:
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]
    finally:
        for one in taken:
            one.close()


class Head:
    """A Ray head with a job server, its session below `folder`, whose jobs find `environment` in their own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        gcs, self._port, agent, client, metrics = free_ports(5)
        left_out = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONPATH")
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(folder)}
        quiet["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job is started with its `python`
        self.environment = inherited | quiet | environment
        self._log = folder / "head.log"
        command = [RAY, "start", "--head", "--block", "--num-cpus=3", f"--port={gcs}", f"--temp-dir={folder}"]
        command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self._port}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
        command += [f"--metrics-export-port={metrics}", f"--object-store-memory={256 * 2**20}"]
        with self._log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=self.environment)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def wait(self) -> None:
        deadline = time.monotonic() + 300
        while True:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.3)

    def end(self) -> None:
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        for left in psutil.wait_procs([*started, psutil.Process(self._process.pid)], timeout=8)[1]:
            left.kill()
        self._process.wait(timeout=60)


def test_a_submitted_job_leaves_no_secret_anywhere(s3_server, tmp_path):
    root = f"{BUCKET}/secrets"
    in_uris, in_texts = plant(REFUSED_URIS), plant(["video_id", "carried"])
    in_environment = plant(IN_ENVIRONMENT)
    s3_server.put(str(write_video(tmp_path / "a.mp4", frames=4)), f"{root}/videos/a.mp4")
    s3_server.put(str(write_bad_files(tmp_path / "bad")["truncated"]), f"{root}/videos/cut.mp4")
    rows = [{"uri": f"s3://{root}/videos/{name}.mp4", "question": "what color"} for name in ("a", "a", "cut", "gone")]
    rows[0]["origin"] = f"see https://user:{in_texts['carried']}@archive.example.com/a"
    rows[1]["video_id"] = f"https://archive.example.com/b?X-Amz-Signature={in_texts['video_id']}"
    rows += [{"uri": uri.format(in_uris[form]), "question": "why"} for form, uri in REFUSED_URIS.items()]
    s3_server.pipe(f"{BUCKET}/asked.jsonl", "\n".join(map(json.dumps, rows)).encode())

    sources = tmp_path / "checkout"
    for name in ("jobs", "pipeline", "pruning"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    given = [f"manifest=s3://{BUCKET}/asked.jsonl", f"output=s3://{root}/out", "failures.max_failed_share=1"]
    given += ["generation.max_new_tokens=2", "cluster.decoders=1", "video.frames=2"]
    (sources / "job.yaml").write_text("task: qa\n")

    with tempfile.TemporaryDirectory(prefix="hv") as folder:
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        head = Head(Path(folder), in_environment | {"AWS_ENDPOINT_URL": endpoint, "OMP_NUM_THREADS": "1"})
        try:
            head.wait()
            submitted = subprocess.run(
                [sys.executable, "-m", "jobs.submit", "qa", "--config", "job.yaml", "--address", head.url, *given],
                cwd=sources,
                env=head.environment,
                capture_output=True,
                text=True,
                timeout=500,
            )
            with urllib.request.urlopen(f"{head.url}/api/jobs/", timeout=60) as answer:
                metadata = answer.read().decode()
        finally:
            head.end()
        logs = files_below(Path(folder))

    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert f"s3://{BUCKET}/asked.jsonl" in metadata
    assert any("1 answered of 11" in text for name, text in logs.items() if "job-driver" in name), submitted.stdout
    written = objects_below(s3_server, f"{root}/out")
    [values] = [text for name, text in written.items() if name.endswith(" values") and "/results/" in name]
    for expected in ("see https://archive.example.com/a", "'truncated'", "'not_found'"):
        assert expected in values
    assert values.count("'uri_credentials'") == len(REFUSED_URIS) + 1
    printed = {"stdout": submitted.stdout, "stderr": submitted.stderr, "job metadata": metadata}
    assert_none_in(in_environment | in_uris | in_texts, {**printed, **written, **logs})
