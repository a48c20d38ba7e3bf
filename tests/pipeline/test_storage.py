import os
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import ClusterError, RowError, UserError
from pipeline.storage import (
    absolute,
    check_readable,
    check_writable,
    delete,
    exists,
    fetch_video,
    filesystem_for,
    is_folder,
    join,
    local_copy,
    parent,
    read_bytes,
    write_atomic,
)
from tests.loopback import serving


@contextmanager
def broken_s3(environment, status, failures=None, then=b""):
    """An S3 endpoint that answers with one HTTP status, or with `then` after so many `failures`."""
    answered = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            recovered = failures is not None and len(answered) >= failures
            answered.append(self.path)
            self.send_response(200 if recovered else status)
            self.send_header("Content-Length", str(len(then) if recovered else 0))
            self.end_headers()
            self.wfile.write(then if recovered and self.command != "HEAD" else b"")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_):
            pass

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        environment.setenv("AWS_ENDPOINT_URL", url)
        yield


def test_files_are_written_read_and_deleted(place):
    uri = join(place, "runs", "one", "config.yaml")
    assert not exists(uri)
    write_atomic(uri, b"first")
    write_atomic(uri, b"second")
    assert read_bytes(uri) == b"second"
    assert is_folder(join(place, "runs"))
    assert not is_folder(uri)
    check_readable(uri)
    delete(uri)
    assert not exists(uri)


def test_a_local_file_is_copied_whole(place, tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(b"x" * 100_000)
    uri = join(place, "copy.bin")
    write_atomic(uri, source)
    assert read_bytes(uri) == source.read_bytes()


def test_a_failed_local_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "result.parquet"
    write_atomic(str(target), b"old")

    def no_space(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", no_space)
    with pytest.raises(UserError, match="No space left"):
        write_atomic(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.parquet"]


def test_readers_never_see_a_part_of_a_local_file(tmp_path):
    target = tmp_path / "status.json"
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_atomic(str(target), contents[0])
    done = threading.Event()

    def rewrite():
        for turn in range(40):
            write_atomic(str(target), contents[turn % 2])
        done.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(target.read_bytes())
    writer.join()
    assert seen <= set(contents)


def test_a_writable_output_is_left_as_it_was(place):
    check_writable(join(place, "results"))
    filesystem, path = filesystem_for(place)
    assert filesystem.find(path) == []


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/out"):
        check_writable(str(tmp_path / "file" / "out"))


def test_an_output_in_a_missing_bucket_is_refused(bucket):
    with pytest.raises(UserError, match="cannot write to s3://no-such-bucket-here/x: not found"):
        check_writable("s3://no-such-bucket-here/x")


def test_missing_files_are_the_user_s_to_mend(place):
    uri = join(place, "none.csv")
    for action in (read_bytes, check_readable, lambda uri: local_copy(uri, Path())):
        with pytest.raises(UserError, match=r"none\.csv: not found"):
            action(uri)


def test_a_refusal_by_s3_is_the_user_s_to_mend(s3_environment):
    with broken_s3(s3_environment, 403), pytest.raises(UserError, match="permission denied"):
        read_bytes("s3://bucket/manifest.csv")


def test_no_credentials_are_the_user_s_to_mend(bucket, s3_environment):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_environment.delenv(name)
    s3_environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_environment.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    filesystem_for(bucket)[0].clear_instance_cache()
    with pytest.raises(UserError, match="credentials"):
        read_bytes(join(bucket, "manifest.csv"))
    filesystem_for(bucket)[0].clear_instance_cache()


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_s3_is_the_cluster_s_fault(s3_environment, monkeypatch, status):
    monkeypatch.setitem(storage._S3_CONFIG, "retries", {"total_max_attempts": 1})
    with broken_s3(s3_environment, status), pytest.raises(ClusterError, match="cannot read s3://bucket/manifest"):
        read_bytes("s3://bucket/manifest.csv")


def test_an_s3_that_recovers_within_seconds_is_waited_for(s3_environment):
    with broken_s3(s3_environment, 503, failures=2, then=b"content"):
        assert read_bytes("s3://bucket/manifest.csv") == b"content"


def test_an_s3_that_does_not_answer_is_the_cluster_s_fault(s3_environment, monkeypatch):
    monkeypatch.setitem(storage._S3_CONFIG, "retries", {"total_max_attempts": 2})
    s3_environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for action in (read_bytes, exists, check_writable):
        with pytest.raises(ClusterError, match="s3://bucket/x"):
            action("s3://bucket/x")


def test_other_schemes_are_refused():
    with pytest.raises(UserError, match="only local paths"):
        read_bytes("gs://bucket/x")


def test_a_local_video_is_used_where_it_lies(tmp_path):
    video = tmp_path / "a clip.mp4"
    video.write_bytes(b"12345")
    assert fetch_video(str(video), tmp_path / "scratch") == (video, 5)
    assert fetch_video(f"file://{tmp_path}/a%20clip.mp4", tmp_path / "scratch") == (video, 5)


def test_a_remote_video_is_downloaded(bucket, tmp_path):
    write_atomic(join(bucket, "clip.mp4"), b"12345")
    path, size = fetch_video(join(bucket, "clip.mp4"), tmp_path)
    assert (path.read_bytes(), size, path.suffix, path.parent) == (b"12345", 5, ".mp4", tmp_path)


def test_an_empty_remote_video_is_fetched_too(bucket, tmp_path):
    write_atomic(join(bucket, "clip.mp4"), b"")
    assert fetch_video(join(bucket, "clip.mp4"), tmp_path)[1] == 0


def row_error(uri, folder):
    with pytest.raises(RowError) as caught:
        fetch_video(uri, folder)
    assert caught.value.stage == "fetch"
    return caught.value.code


def test_a_missing_video_is_an_error_of_its_row(bucket, tmp_path):
    assert row_error(str(tmp_path / "none.mp4"), tmp_path) == "not_found"
    assert row_error(str(tmp_path), tmp_path) == "not_found"
    assert row_error(join(bucket, "none.mp4"), tmp_path) == "not_found"
    assert row_error("s3://no-such-bucket-here/x.mp4", tmp_path) == "not_found"
    assert list(tmp_path.iterdir()) == []


def test_other_failures_to_fetch_have_their_codes(s3_environment, monkeypatch, tmp_path):
    monkeypatch.setitem(storage._S3_CONFIG, "retries", {"total_max_attempts": 1})
    with broken_s3(s3_environment, 403):
        assert row_error("s3://bucket/x.mp4", tmp_path) == "forbidden"
    with broken_s3(s3_environment, 503):
        assert row_error("s3://bucket/x.mp4", tmp_path) == "fetch_failed"
    assert row_error("/data/\0.mp4", tmp_path) == "fetch_failed"
    assert row_error("gs://bucket/x.mp4", tmp_path) == "fetch_failed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("base", "parts", "joined"),
    [
        ("out", ("runs", "a"), "out/runs/a"),
        ("s3://bucket/", ("/x/", "y"), "s3://bucket/x/y"),
        ("/", ("x",), "/x"),
    ],
)
def test_join_puts_one_slash_between(base, parts, joined):
    assert join(base, *parts) == joined


def test_parent_and_absolute_hold_from_any_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert absolute("out") == str(tmp_path / "out")
    assert absolute("file:///data/x%20y") == "/data/x y"
    assert absolute("s3://bucket/x/") == "s3://bucket/x"
    assert parent("manifests/a.csv") == str(tmp_path / "manifests")
    assert parent("s3://bucket/m/a.csv") == "s3://bucket/m"


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="not a regular file"):
        write_atomic(str(pipe), b"x")
    assert pipe.is_fifo()
