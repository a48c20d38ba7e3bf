"""What is found of a job's storage, model and cluster."""

import json
import re
import shutil
import socket
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file, save_file

import pipeline.tiny
from pipeline.doctor import cluster, machine, places
from pipeline.doctor.check import examine, exit_status
from pipeline.doctor.checks import job_checks
from pipeline.doctor.cluster import look_at_cluster
from pipeline.doctor.job import check_job
from pipeline.doctor.model import check_files, look_at_model
from pipeline.errors import ClusterError, UserError
from pipeline.model_fetch import local_model
from pipeline.model_load import find_model
from pipeline.storage import filesystem_for, join
from tests.loopback import serving
from tests.pipeline.strict_s3 import StrictS3

TINY = Path(pipeline.tiny.__file__).parent / "checkpoint"


@contextmanager
def server(status: int, body: bytes = b"", **headers: str):
    """Answers every request the same way; the answer's url."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


@contextmanager
def silent_port():
    """A port that takes connections and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def names_below(uri: str) -> list[str]:
    filesystem, path = filesystem_for(uri)
    return filesystem.find(path)


def test_an_output_that_decides_conditions_is_left_as_it_was(place):
    output = join(place, "out")
    assert places.look_at_output(output).status == "ok"
    assert names_below(output) == []


@pytest.mark.parametrize(("check", "header"), [("check_creation", "If-None-Match"), ("check_replacement", "If-Match")])
def test_a_storage_that_ignores_conditions_is_refused(bucket, s3_environment, check, header):
    strict = StrictS3()
    strict.ignores_conditions = True
    with strict.as_endpoint(s3_environment):
        with pytest.raises(UserError, match=f"ignores {header}"):
            getattr(places, check)(join(bucket, "out"))
        assert names_below(join(bucket, "out")) == []


@pytest.mark.parametrize(
    ("hours", "status", "told"),
    [(0, "ok", "as the storage's"), (-0.1, "warn", r"3[56]\d s ahead of"), (1, "fail", r"3,[56]\d\d s behind")],
)
def test_a_clock_that_is_wrong_is_told(s3_environment, hours, status, told):
    date = format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)
    with server(403, Date=date) as url:
        s3_environment.setenv("AWS_ENDPOINT_URL", url)
        found = places.look_at_clock("s3://archive/out")
    assert found.status == status
    assert re.search(told, found.found)


def test_a_storage_that_hangs_does_not_hang_the_doctor(s3_environment, job, monkeypatch):
    monkeypatch.setattr("pipeline.doctor.checks._STORAGE_S", 0.3)
    with silent_port() as port:
        s3_environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        checks = job_checks(job("s3://archive/m.jsonl", "output=s3://archive/out"))
        found = examine([check for check in checks if check.name != "model"])
    assert [name for name, _ in found] == ["manifest", "output", "clock"]
    assert exit_status(found) == 3
    assert "AWS_ENDPOINT_URL" in found[0][1].advice


def test_what_is_missing_is_the_users_to_change(bucket, job):
    found = examine(job_checks(job(f"{bucket}/none.jsonl", f"output={bucket}/out", "model.source=/no/such/model")))
    statuses = {name: finding.status for name, finding in found}
    assert statuses == {"manifest": "fail", "output": "ok", "clock": "ok", "model": "fail"}
    assert exit_status(found) == 2


def copy_of_tiny(folder: Path) -> Path:
    shutil.copytree(TINY, folder)
    return folder


def cut_in_two(folder: Path) -> Path:
    """The same model in two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for name, held in halves.items():
        save_file({key: np.ascontiguousarray(weights[key]) for key in held}, folder / name)
    placed = {key: name for name, held in halves.items() for key in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def test_a_whole_model_is_described():
    found = look_at_model("builtin:tiny")
    assert found.status == "ok"
    assert "LlavaOnevision" in found.found
    assert "sha256 " in found.found


def test_a_model_in_several_files_is_whole(tmp_path):
    folder = cut_in_two(copy_of_tiny(tmp_path / "tiny"))
    assert [path.name for path in check_files(folder)] == ["a.safetensors", "b.safetensors"]


def cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder):
    (cut_in_two(folder) / "b.safetensors").unlink()


def with_a_wrong_index(folder):
    index = cut_in_two(folder) / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    known["weight_map"]["lm_head.extra"] = "a.safetensors"
    index.write_text(json.dumps(known))


def with_an_index_that_leads_out(folder):
    index = cut_in_two(folder) / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def with_a_broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut_short, "cut short"),
        (without_a_shard, "b.safetensors is missing"),
        (with_a_wrong_index, "no weight lm_head.extra"),
        (with_an_index_that_leads_out, "outside of the model's folder"),
        (pickled, "pytorch_model.bin) are never loaded"),
        (without_tokenizer, "no tokenizer"),
        (with_a_broken_tokenizer, "tokenizer.json is not readable"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(tmp_path, damage, told):
    damage(folder := copy_of_tiny(tmp_path / "tiny"))
    with pytest.raises(UserError, match=r"model\.source: ") as refused:
        check_files(folder)
    assert told in str(refused.value)


def test_a_fetched_model_is_compared_with_what_was_fetched(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("HIERAVID_CACHE", str(tmp_path / "cache"))
    source = join(bucket, "models", "tiny")
    filesystem, path = filesystem_for(source)
    filesystem.put(str(TINY), path, recursive=True)
    assert "fetched when a job starts" in look_at_model(source).found
    fetched = Path(local_model(source))
    assert look_at_model(source).status == "ok"
    with (fetched / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\x7f")
    found = look_at_model(source)
    assert found.status == "fail"
    assert "model.safetensors is not what was fetched" in found.found


VERSIONS = {"same": ray.__version__, "other": "2.1.0"}


def test_no_cluster_means_a_local_one():
    assert "local" in look_at_cluster(None).found


@pytest.mark.parametrize(("theirs", "status"), [("same", "ok"), ("other", "fail")])
def test_a_job_server_tells_its_version(theirs, status):
    with server(200, json.dumps({"ray_version": VERSIONS[theirs]}).encode()) as url:
        found = look_at_cluster(url)
    assert found.status == status
    assert VERSIONS[theirs] in found.found


@pytest.mark.parametrize(
    ("code", "body", "told"),
    [(401, b"", "RAY_AUTH_TOKEN"), (404, b"", "no Ray job server"), (200, b"hello", "no Ray job server")],
)
def test_what_is_no_open_job_server_is_told(code, body, told):
    with server(code, body) as url, pytest.raises(UserError, match=told):
        look_at_cluster(url)


def test_where_nothing_listens_the_cluster_is_away(closed_port):
    for address in (f"127.0.0.1:{closed_port}", f"http://127.0.0.1:{closed_port}"):
        with pytest.raises(ClusterError, match="nothing answers at"):
            look_at_cluster(address)


def test_who_listens_and_is_no_cluster_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(cluster, "_ASK_S", 0.5)
    with silent_port() as port, pytest.raises(ClusterError, match="does not answer as a Ray cluster"):
        look_at_cluster(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:ray", "http://"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(UserError, match=r"Ray Client|host:port"):
        look_at_cluster(address)


def test_a_python_that_differs_is_told(monkeypatch):
    known = {"address": "10.0.0.1:6379", "ray": ray.__version__, "python": "3.9.1"}
    monkeypatch.setattr(cluster, "_ask_head", lambda _: known)
    found = look_at_cluster("auto")
    assert found.status == "fail"
    assert "Python 3.9.1 there" in found.found


def check(config):
    check_job(config, find_model(config.model, lambda _: None))


def test_a_job_that_can_run_passes(place, job, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check(job("videos", f"output={place}/out"))
    assert names_below(place) == []


def test_a_job_without_its_cluster_is_refused(job, monkeypatch, closed_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterError, match="nothing answers"):
        check(job("videos"))


def test_a_job_with_half_a_model_is_refused(job, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cut_short(copy_of_tiny(tmp_path / "tiny"))
    with pytest.raises(UserError, match="cut short"):
        check(job("videos", f"model.source={tmp_path / 'tiny'}"))


def test_a_job_without_room_is_refused(job, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "_LEAST_FREE", 2**60)
    with pytest.raises(UserError, match="no room to write"):
        check(job("videos"))
