import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from pipeline import model_fetch, model_hub, model_remote
from pipeline.engine import checkpoint
from pipeline.errors import ClusterError, UserError
from pipeline.model_fetch import local_model, model_version
from pipeline.model_remote import S3Model, is_model_file
from pipeline.storage import filesystem_for, join
from tests.pipeline.hub_server import MAIN, serve_hub

CONTENT = {"config.json": b'{"a": 1}', "model.safetensors": b"weights" * 999, "tokenizer.json": b"{}"}
UNWANTED = {"modeling.py": b"import os", "pytorch_model.bin": b"pickle", "README.md": b"# model", "training.pt": b"x"}
HUB_ID = "owner/some-7b"

# Fetches in a process of its own, and writes one line into a log for each download that it really does.
FETCH = """
import os, sys
from pipeline import model_remote
from pipeline.model_fetch import local_model
source, log = sys.argv[1:]
download = model_remote.S3Model.download
def logged(self, listing, folder):
    with open(log, "a") as out:
        out.write(f"{os.getpid()}\\n")
    download(self, listing, folder)
model_remote.S3Model.download = logged
print(local_model(source))
"""
# Dies at the second of three files, as a machine does: nothing is cleaned up.
DIE = """
import os, sys
import s3fs
from pipeline.model_fetch import local_model
get_file, fetched = s3fs.S3FileSystem.get_file, []
def deadly(self, *args):
    fetched.append(args)
    if len(fetched) == 2:
        os._exit(9)
    return get_file(self, *args)
s3fs.S3FileSystem.get_file = deadly
local_model(sys.argv[1])
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("HIERAVID_CACHE", str(folder))
    return folder / "models"


@pytest.fixture
def s3_model(bucket):
    """The uri of a model on S3, with files beside it that are none of ours."""
    uri = join(bucket, "models", "some-7b")
    put(uri, CONTENT | UNWANTED | {"onnx/model.safetensors": b"other"})
    return uri


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub; huggingface_hub itself is the real one."""
    with serve_hub(CONTENT | UNWANTED | {"onnx/model.safetensors": b"other"}) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(model_hub, "time", SimpleNamespace(sleep=lambda seconds: None))
        yield server


def put(uri, files):
    filesystem, path = filesystem_for(uri)
    for name, content in files.items():
        filesystem.pipe_file(f"{path}/{name}", content)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def versions(cache):
    """What lies in the cache and would count, or is left over."""
    return sorted(path.name for path in cache.glob("*/*") if path.suffix != ".lock")


def processes(program, *arguments, count=1):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(count)
    ]
    return [(*process.communicate(timeout=120), process.returncode) for process in started]


def refused(error, source, version=None):
    with pytest.raises(error) as caught:
        local_model(source, version)
    told = str(caught.value)
    assert told.startswith("model.source: ")
    assert "\n" not in told
    return told


def test_what_is_on_this_machine_stays_where_it_is(tmp_path, monkeypatch, cache):
    (tmp_path / "owner" / "some-7b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_model("builtin:tiny") == "builtin:tiny"
    for source in (HUB_ID, str(tmp_path / "owner/some-7b"), (tmp_path / "owner/some-7b").as_uri(), "./owner/some-7b"):
        assert local_model(source) == tmp_path / "owner" / "some-7b"
        assert model_version(source) is None
    assert local_model("/no/such/folder") == Path("/no/such/folder")
    assert not cache.exists()


def test_all_that_the_engine_reads_is_fetched():
    assert all(is_model_file(pattern.replace("*", "model-00001-of-00004")) for pattern in checkpoint.CONTENT_FILES)
    assert is_model_file("calibration.json")


def test_a_model_on_s3_becomes_a_folder_of_its_safe_files(s3_model, cache):
    folder = local_model(s3_model)
    assert folder.name == "some-7b"
    assert contents(folder) == CONTENT
    assert local_model(s3_model + "/") == folder
    assert versions(cache) == [model_version(s3_model)]


def test_what_is_in_the_cache_is_not_fetched_again(s3_model, monkeypatch):
    folder, version = local_model(s3_model), model_version(s3_model)
    monkeypatch.setattr(S3Model, "download", lambda *_: pytest.fail("fetched again"))
    assert local_model(s3_model) == folder
    monkeypatch.setattr(S3Model, "listing", lambda *_: pytest.fail("asked for a version that is here"))
    assert local_model(s3_model, version) == folder


def test_a_changed_model_is_fetched_anew_and_the_old_one_stays(s3_model, cache):
    before, version = local_model(s3_model), model_version(s3_model)
    put(s3_model, {"model.safetensors": b"retrained"})
    after = local_model(s3_model)
    assert contents(after)["model.safetensors"] == b"retrained"
    assert contents(before) == CONTENT
    assert local_model(s3_model, version) == before
    shutil.rmtree(cache)
    assert "has changed" in refused(UserError, s3_model, version)


def test_a_model_that_changes_while_it_is_fetched_does_not_count(s3_model, cache, monkeypatch):
    matches = model_remote.matches

    def replace(path, file):
        put(s3_model, {"model.safetensors": b"retrained"})
        return matches(path, file)

    monkeypatch.setattr(model_remote, "matches", replace)
    assert "has changed" in refused(UserError, s3_model)
    assert versions(cache) == []


@pytest.mark.parametrize("spoil", ["shorten", "flip", "remove"])
def test_a_copy_that_is_not_whole_any_more_is_fetched_anew(s3_model, spoil):
    path = local_model(s3_model) / "model.safetensors"
    whole = path.read_bytes()
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-1] + (b"" if spoil == "shorten" else b"?"))
        os.utime(path, (time.time() + 9, time.time() + 9))
    assert contents(local_model(s3_model)) == CONTENT


def test_a_copy_with_other_times_is_compared_and_kept(s3_model, monkeypatch):
    folder = local_model(s3_model)
    os.utime(folder / "model.safetensors", (1, 1))
    monkeypatch.setattr(S3Model, "download", lambda *_: pytest.fail("fetched again"))
    assert local_model(s3_model) == folder


def test_processes_that_start_together_fetch_once(s3_model, tmp_path):
    log = tmp_path / "log"
    ended = processes(FETCH, s3_model, log, count=3)
    folders = {out for out, _, status in ended if status == 0}
    assert len(log.read_text().splitlines()) == 1, ended
    assert len(folders) == 1
    assert contents(folders.pop().strip()) == CONTENT


def test_a_process_that_dies_on_the_way_leaves_nothing_that_counts(s3_model, cache):
    [(_, told, status)] = processes(DIE, s3_model)
    assert status == 9, told
    [left_over] = versions(cache)
    assert left_over.endswith(".partial")
    folder = local_model(s3_model)
    assert contents(folder) == CONTENT
    assert versions(cache) == [folder.parent.name]


def test_an_object_that_arrives_otherwise_than_its_etag_says_does_not_count(s3_model, cache, monkeypatch):
    filesystem, _ = filesystem_for(s3_model)
    get_file = filesystem.get_file

    def damaged(key, target):
        get_file(key, target)
        content = Path(target).read_bytes()
        Path(target).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(filesystem, "get_file", damaged)
    assert "config.json arrived damaged" in refused(ClusterError, s3_model)
    assert versions(cache) == []


def test_an_object_under_a_key_of_its_own_has_an_etag_that_is_no_digest(s3_model, monkeypatch):
    listing = S3Model.listing

    def as_of_kms(self, version=None):  # the server here makes MD5s all the same
        found = listing(self)
        files = tuple(model_remote.RemoteFile(file.name, file.size, "md5:" + "0" * 32) for file in found.files)
        return model_remote.Listing(found.version, files)

    monkeypatch.setattr(S3Model, "listing", as_of_kms)
    assert "arrived damaged" in refused(ClusterError, s3_model)
    filesystem, path = filesystem_for(s3_model)
    for name, content in CONTENT.items():
        filesystem.pipe_file(f"{path}/{name}", content, ServerSideEncryption="aws:kms")
    assert contents(local_model(s3_model)) == CONTENT


def test_a_model_on_s3_that_is_not_there_or_none_is_the_users_to_change(s3_model, bucket):
    assert "not found" in refused(UserError, join(bucket, "models", "gone"))
    assert "not found" in refused(UserError, "s3://no-such-bucket-here/model")
    assert "no config.json" in refused(UserError, join(bucket, "models"))
    filesystem, path = filesystem_for(s3_model)
    filesystem.rm_file(f"{path}/model.safetensors")
    assert "no .safetensors weights" in refused(UserError, s3_model)
    assert "https" in refused(UserError, "https://huggingface.co/owner/some-7b")


def test_a_refusal_names_no_secret(s3_model, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("AccessDenied for AWS_SECRET_ACCESS_KEY=hunter2secret")

    filesystem, _ = filesystem_for(s3_model)
    monkeypatch.setattr(filesystem, "ls", refuse)
    told = refused(UserError, s3_model)
    assert "permission denied" in told
    assert "hunter2secret" not in told


def test_storage_that_does_not_answer_is_the_clusters_fault(s3_environment):
    s3_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_environment.setattr("pipeline.storage._S3_CONFIG", {"connect_timeout": 1, "retries": {"total_max_attempts": 1}})
    assert "s3://bucket/model" in refused(ClusterError, "s3://bucket/model")


def test_a_full_disk_is_told_before_or_while_it_fills(s3_model, cache, monkeypatch):
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=10))
    assert "0.0 GiB free" in refused(UserError, s3_model)
    monkeypatch.setattr(shutil, "disk_usage", usage)

    def fill(*_):
        raise OSError(28, "No space left on device")

    filesystem, _ = filesystem_for(s3_model)
    monkeypatch.setattr(filesystem, "get_file", fill)
    assert "No space left on device" in refused(UserError, s3_model)
    assert versions(cache) == []


def test_a_cache_that_cannot_be_written_is_named(s3_model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIERAVID_CACHE", str(tmp_path / "file"))
    assert "HIERAVID_CACHE" in refused(UserError, s3_model)


def test_a_model_of_the_hub_becomes_a_folder_of_its_safe_files(hub, cache):
    folder = local_model(HUB_ID)
    assert folder.name == "some-7b"
    assert contents(folder) == CONTENT
    assert versions(cache) == [MAIN] == [model_version(HUB_ID)]
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == set(CONTENT)


def test_a_commit_in_the_cache_is_found_without_the_hub(hub):
    folder = local_model(HUB_ID)
    hub.refuses = (500, "")
    assert local_model(f"{HUB_ID}@{MAIN}") == local_model(HUB_ID, MAIN) == folder
    assert model_version(f"{HUB_ID}@{MAIN}") == MAIN


def test_a_branch_that_has_moved_is_fetched_anew_and_a_pinned_version_is_not(hub):
    before = local_model(HUB_ID)
    hub.commits["2" * 40] = CONTENT | {"model.safetensors": b"retrained"}
    hub.branches["main"] = hub.branches["v2"] = "2" * 40
    assert contents(local_model(HUB_ID))["model.safetensors"] == b"retrained"
    assert local_model(f"{HUB_ID}@v2") == local_model(HUB_ID)
    assert local_model(HUB_ID, MAIN) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_arrives_otherwise_than_the_hub_says_does_not_count(hub, cache, name):
    hub.damages = name
    assert f"{name} arrived damaged" in refused(ClusterError, HUB_ID)
    assert versions(cache) == []


@pytest.mark.parametrize(
    ("refuses", "error", "told"),
    [
        ((404, "RepoNotFound"), UserError, "neither a folder on this machine nor a model that the hub shows"),
        ((404, "RevisionNotFound"), UserError, "no such revision"),
        ((403, "GatedRepo"), UserError, "accept its terms there, and set HF_TOKEN"),
        ((403, ""), UserError, "HTTP 403"),
        ((503, ""), ClusterError, "could not be reached"),
    ],
)
def test_what_the_hub_says_is_told_in_a_line(hub, refuses, error, told):
    hub.refuses = refuses
    assert told in refused(error, HUB_ID)


def test_without_the_hub_the_line_says_that_there_is_no_such_folder_either(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    told = refused(ClusterError, HUB_ID)
    assert "owner/some-7b: not a folder on this machine, and the hub could not be reached" in told


def test_the_record_holds_what_a_later_check_needs(s3_model, cache):
    folder = local_model(s3_model)
    record = json.loads((folder.parent / model_fetch._RECORD).read_text())
    assert record["files"].keys() == CONTENT.keys()
    assert all(len(known["sha256"]) == 64 for known in record["files"].values())
