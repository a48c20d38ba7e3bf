import fcntl
import threading
from pathlib import Path

import pytest

from pipeline.conditional_write import VersionConflict, read_versioned, write_if_version
from pipeline.errors import ClusterError, UserError
from pipeline.storage import delete, join
from tests.pipeline.strict_s3 import StrictS3

WAIT_S = 20.0


@pytest.fixture
def uri(place):
    return join(place, "runs", "state.json")


def test_a_file_is_created_read_and_replaced(uri):
    assert read_versioned(uri, WAIT_S) is None
    first = write_if_version(uri, b"a longer first content", None, WAIT_S)
    second = write_if_version(uri, b"second", first, WAIT_S)
    found = read_versioned(uri, WAIT_S)
    assert (found.data, found.version) == (b"second", second)
    assert first != second


def test_what_another_wrote_is_not_replaced(uri):
    old = write_if_version(uri, b"old", None, WAIT_S)
    write_if_version(uri, b"new", old, WAIT_S)
    for version in (old, None):
        with pytest.raises(VersionConflict):
            write_if_version(uri, b"late", version, WAIT_S)
    assert read_versioned(uri, WAIT_S).data == b"new"


def test_a_deleted_file_is_not_replaced(uri):
    version = write_if_version(uri, b"old", None, WAIT_S)
    delete(uri)
    with pytest.raises(VersionConflict):
        write_if_version(uri, b"new", version, WAIT_S)
    assert read_versioned(uri, WAIT_S) is None


def test_of_many_writers_one_replaces_each_version(uri, s3_environment):
    with StrictS3().as_endpoint(s3_environment):
        race(uri)


def race(uri):
    writers, turns = 6, 5
    won = []

    def write(name):
        for turn in range(turns):
            barrier.wait()
            found = read_versioned(uri, WAIT_S)
            barrier.wait()
            try:
                write_if_version(uri, f"{turn} {name}".encode(), found and found.version, WAIT_S)
                won.append(turn)
            except VersionConflict:
                pass

    barrier = threading.Barrier(writers)
    threads = [threading.Thread(target=write, args=(name,)) for name in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(turns))


def test_nothing_lies_beside_a_local_file(tmp_path):
    write_if_version(str(tmp_path / "state.json"), b"data", None, WAIT_S)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_file_that_a_stopped_process_keeps_locked_is_an_error(tmp_path):
    path = tmp_path / "state.json"
    version = write_if_version(str(path), b"data", None, WAIT_S)
    with path.open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="keeps it locked"):
            write_if_version(str(path), b"more", version, 0.05)
        with pytest.raises(UserError, match="keeps it locked"):
            read_versioned(str(path), 0.05)
    assert path.read_bytes() == b"data"


def test_a_folder_that_cannot_be_made_is_the_user_s_to_mend(tmp_path):
    Path(tmp_path, "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_if_version(str(tmp_path / "file" / "state.json"), b"", None, WAIT_S)


def test_a_missing_bucket_is_the_user_s_to_mend(bucket):
    for version in (None, '"0123"'):
        with pytest.raises(UserError, match="not found"):
            write_if_version("s3://no-such-bucket-here/state.json", b"", version, WAIT_S)
    with pytest.raises(UserError, match="not found"):
        read_versioned("s3://no-such-bucket-here/state.json", WAIT_S)


def test_storage_that_is_away_is_given_up_in_time(bucket, s3_environment):
    server = StrictS3()
    server.away = True
    with (
        server.as_endpoint(s3_environment),
        pytest.raises(ClusterError, match=r"cannot read s3://.*: no answer within 0\.2 s"),
    ):
        read_versioned(join(bucket, "state.json"), 0.2)
