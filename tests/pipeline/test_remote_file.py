import os
import uuid

import av
import fsspec
import numpy as np
import pytest

from pipeline import remote_file, remote_object, storage
from pipeline.errors import RowError
from pipeline.remote_file import GAP, HEAD, LARGEST_REQUEST, PARALLEL_REQUESTS, READ_AHEAD, FileChanged, RemoteFile
from pipeline.storage import filesystem_for, join
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling
from pipeline.video.sparse_file import SparseFile
from tests.pipeline.range_server import RangeServer

KIB, MIB = 1024, 1024 * 1024


def noise(size, seed=0):
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def server(s3_environment, monkeypatch):
    """Three MiB behind an endpoint that a test can spoil; one try a request below our own, short waits between ours."""
    monkeypatch.setitem(storage._S3_CONFIG, "retries", {"total_max_attempts": 1})
    monkeypatch.setattr(remote_file, "FIRST_BACKOFF_S", 0.01)
    served = RangeServer(noise(3 * MIB))
    with served.running() as url:
        s3_environment.setenv("AWS_ENDPOINT_URL", url)
        yield served


@pytest.fixture(params=["s3", "memory"])
def put(request):
    """Stores bytes and returns their uri: once on a real S3 server, once on another filesystem of fsspec."""
    base = request.getfixturevalue("bucket") if request.param == "s3" else f"memory://{uuid.uuid4().hex}"

    def put(content, name="video.mp4"):
        uri = join(base, name)
        filesystem, path = filesystem_for(uri) if request.param == "s3" else fsspec.url_to_fs(uri)
        filesystem.pipe_file(path, content)
        return uri

    return put


def open_remote(tmp_path, uri="s3://bucket/video.mp4", retries=2):
    return RemoteFile(uri, retries, tmp_path)


def at_hand(file):
    """Every byte that the file says is there, by its range."""
    return {(begin, end): os.pread(file.fd, end - begin, begin) for begin, end in file.present}


def failure_of(file, *ranges):
    with pytest.raises(RowError) as caught:
        file.fetch(ranges)
    assert caught.value.stage == "fetch"
    return caught.value.code


def test_the_first_request_tells_the_size_and_brings_the_head(put, tmp_path):
    content = noise(2 * MIB)
    with open_remote(tmp_path, put(content)) as file:
        assert file.size == 2 * MIB
        assert os.fstat(file.fd).st_size == 2 * MIB
        assert at_hand(file) == {(0, HEAD): content[:HEAD]}
        assert (file.bytes_fetched, file.attempts) == (HEAD, 1)
        assert file.fetch_s > 0


def test_only_the_wanted_bytes_are_fetched(put, tmp_path):
    content = noise(4 * MIB)
    with open_remote(tmp_path, put(content)) as file:
        present = file.fetch([(MIB, MIB + 100_000), (3 * MIB, 3 * MIB + 5)])
        assert present == [(0, HEAD), (MIB, MIB + 100_000), (3 * MIB, 3 * MIB + READ_AHEAD)]
        assert all(data == content[begin:end] for (begin, end), data in at_hand(file).items())
        assert file.bytes_fetched == HEAD + 100_000 + READ_AHEAD
        assert file.fetch([(MIB + 5, MIB + 99_999)]) == present
        assert file.bytes_fetched == HEAD + 100_000 + READ_AHEAD


@pytest.mark.parametrize("size", [0, 1, HEAD, HEAD + 1, MIB])
def test_a_small_file_is_fetched_whole(put, tmp_path, size):
    content = noise(size)
    with open_remote(tmp_path, put(content)) as file:
        assert file.size == size
        assert b"".join(at_hand(file).values()) == content
        assert file.bytes_fetched == size


def test_a_file_of_which_most_is_wanted_is_fetched_whole(put, tmp_path):
    content = noise(10 * MIB)
    with open_remote(tmp_path, put(content)) as file:
        assert file.fetch([(MIB, 3 * MIB), (5 * MIB, 8 * MIB)]) == [(0, 10 * MIB)]
        assert at_hand(file) == {(0, 10 * MIB): content}
        assert file.bytes_fetched == 10 * MIB


def test_ranges_outside_of_the_file_are_nothing(put, tmp_path):
    with open_remote(tmp_path, put(noise(2 * MIB))) as file:
        assert file.fetch([(-5, 10), (2 * MIB - 1, 9 * MIB), (7, 3), (5 * MIB, 6 * MIB)]) == [
            (0, HEAD),
            (2 * MIB - 1, 2 * MIB),
        ]


def test_missing_files_are_asked_for_once(put, tmp_path):
    uri = put(b"x")
    with open_remote(tmp_path, uri + "x") as file:
        assert failure_of(file) == "not_found"
        assert file.attempts == 1


def test_an_object_that_is_replaced_is_begun_anew_once(put, tmp_path):
    uri = put(noise(3 * MIB))
    with open_remote(tmp_path, uri) as file:
        assert file.size == 3 * MIB
        second = noise(2 * MIB, seed=1)
        put(second)
        with pytest.raises(FileChanged) as caught:
            file.fetch([(MIB, MIB + 10)])
        assert (caught.value.stage, caught.value.code) == ("fetch", "fetch_failed")
        assert file.size == os.fstat(file.fd).st_size == 2 * MIB
        file.fetch([(MIB, MIB + 10)])
        assert all(data == second[begin:end] for (begin, end), data in at_hand(file).items())
        put(noise(3 * MIB, seed=2))
        with pytest.raises(RowError, match="changed twice") as caught:
            file.fetch([(MIB + 512 * KIB, 2 * MIB)])
        assert not isinstance(caught.value, FileChanged)


def test_neighbours_are_fetched_by_one_request_and_large_ranges_by_several_at_a_time(server, tmp_path):
    server.content = noise(64 * MIB)
    with open_remote(tmp_path) as file:
        file.fetch([(MIB, MIB + 70_000), (MIB + 70_000 + GAP, 2 * MIB)])
        assert server.requests == [(0, HEAD), (MIB, 2 * MIB)]
        server.delay_s = 0.05
        file.fetch([(10 * MIB, 10 * MIB + 2 * LARGEST_REQUEST + 1)])
        begins = sorted(server.requests[2:])
        assert begins == [
            (10 * MIB, 18 * MIB),
            (18 * MIB, 26 * MIB),
            (26 * MIB, 26 * MIB + 1),
        ]
        assert server.most_at_once == 3
        file.fetch([(40 * MIB + i * MIB, 40 * MIB + i * MIB + 1) for i in range(14)])
        assert server.most_at_once == PARALLEL_REQUESTS
        assert all(data == server.content[begin:end] for (begin, end), data in at_hand(file).items())


@pytest.mark.parametrize("fault", [429, 500, 503, "short", "reset"])
def test_what_may_pass_is_tried_again(server, tmp_path, fault):
    server.faults = [fault, None, fault, fault]
    with open_remote(tmp_path) as file:
        assert file.size == 3 * MIB
        assert file.attempts == 2
        file.fetch([(MIB, 2 * MIB - 100_000)])
        assert file.attempts == 3
        assert len(server.requests) == 5
        assert all(data == server.content[begin:end] for (begin, end), data in at_hand(file).items())


def test_a_server_that_falls_silent_is_not_waited_for_for_ever(server, tmp_path, monkeypatch):
    with open_remote(tmp_path) as file:
        assert file.size == 3 * MIB
        monkeypatch.setattr(remote_object, "_REQUEST_S", 0.7)
        server.faults = ["stall"]
        file.fetch([(MIB, MIB + 1)])
        assert file.attempts > 1
        assert server.requests[1:3] == [(MIB, MIB + READ_AHEAD)] * 2


@pytest.mark.parametrize("fault", [503, "short", "reset"])
def test_what_does_not_pass_fails_the_row(server, tmp_path, fault, monkeypatch):
    monkeypatch.setattr(remote_file, "OUTAGE_S", 0.0)
    with open_remote(tmp_path) as file:
        assert file.size == 3 * MIB
        server.faults = [fault] * 3
        assert failure_of(file, (MIB, MIB + 10)) == "fetch_failed"
        assert file.attempts == 3


def test_a_storage_that_is_away_is_waited_for(server, tmp_path):
    with open_remote(tmp_path, retries=1) as file:
        assert file.size == 3 * MIB
        server.faults = [503] * 4  # two rounds of tries
        file.fetch([(MIB, MIB + 10)])
        assert file.attempts == 5


@pytest.mark.parametrize("fault", [429, "short", "reset"])
def test_what_is_no_outage_is_not_waited_for(server, tmp_path, fault):
    with open_remote(tmp_path, retries=1) as file:
        assert file.size == 3 * MIB
        server.faults = [fault] * 4
        assert failure_of(file, (MIB, MIB + 10)) == "fetch_failed"
        assert len(server.requests) == 3


def test_a_refusal_is_final(server, tmp_path):
    for status, code in ((403, "forbidden"), (404, "not_found")):
        server.faults = [status]
        server.requests.clear()
        with open_remote(tmp_path) as file:
            assert failure_of(file) == code
            assert len(server.requests) == 1


def test_after_one_request_failed_for_good_no_further_one_is_made(server, tmp_path):
    server.content = noise(32 * MIB)
    with open_remote(tmp_path) as file:
        assert file.size == 32 * MIB
        server.faults = [403] * 100
        server.delay_s = 0.02
        assert failure_of(file, *[(i * MIB, i * MIB + 1) for i in range(1, 31)]) == "forbidden"
        assert len(server.requests) < 25


def test_a_server_without_ranges_is_read_whole_by_one_request(server, tmp_path):
    server.serves_ranges = False
    with open_remote(tmp_path) as file:
        assert at_hand(file) == {(0, 3 * MIB): server.content}
        file.fetch([(MIB, 2 * MIB)])
        assert len(server.requests) == 1


def test_a_small_file_that_is_replaced_before_anyone_saw_it_is_just_read_again(server, tmp_path):
    server.content = noise(MIB)
    server.faults = ["replaced"]
    with open_remote(tmp_path) as file:
        assert at_hand(file) == {(0, MIB): server.content}
    server.faults = ["replaced", None, "replaced"]  # the second request is refused
    with open_remote(tmp_path) as file, pytest.raises(RowError, match="changed twice"):
        _ = file.size


def test_a_change_is_seen_where_the_server_does_not_compare(server, tmp_path):
    server.checks_etag = False
    with open_remote(tmp_path) as file:
        assert file.size == 3 * MIB
        server.etag, server.content = '"two"', noise(3 * MIB, seed=1)
        with pytest.raises(FileChanged):
            file.fetch([(MIB, MIB + 10)])


def test_other_failures_have_their_code_too(server, tmp_path):
    for uri in ("s3://bucket", "nosuch://bucket/x.mp4"):
        with open_remote(tmp_path, uri, retries=0) as file:
            assert failure_of(file) == "fetch_failed"
    with pytest.raises(RowError, match="fetch_failed: no file can be made in"):
        open_remote(tmp_path / "missing")


def test_the_local_file_has_no_name_and_is_closed(put, tmp_path):
    file = open_remote(tmp_path, put(noise(2 * MIB)))
    assert file.size == 2 * MIB
    assert list(tmp_path.iterdir()) == []
    fd = file.fd
    file.close()
    with pytest.raises(OSError):
        os.fstat(fd)


def write_long_video(path, index_first, turns=8, frames=50, gop=25):
    """An MP4 of noise, about 100 KiB a frame: one piece of it is encoded, and stands there again and again."""
    random = np.random.default_rng(1)
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        options = {"g": str(gop), "crf": "20", "preset": "ultrafast", "sc_threshold": "0", "bf": "0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        pictures = [random.integers(0, 256, (240, 320, 3), np.uint8) for _ in range(frames)]
        piece = [
            (packet.pts, packet.dts, bytes(packet), packet.is_keyframe)
            for picture in [*pictures, None]
            for packet in stream.encode(picture if picture is None else av.VideoFrame.from_ndarray(picture))
        ]
        for turn in range(turns):
            for pts, dts, data, is_keyframe in piece:
                packet = av.Packet(data)
                packet.pts, packet.dts = pts + turn * frames, dts + turn * frames
                packet.time_base, packet.stream, packet.is_keyframe = (
                    stream.codec_context.time_base,
                    stream,
                    is_keyframe,
                )
                container.mux(packet)
    return path


@pytest.mark.parametrize("index_first", [True, False])
def test_keyframes_of_a_long_video_cost_less_than_a_tenth_of_it(bucket, tmp_path, index_first):
    path = write_long_video(tmp_path / "long.mp4", index_first)
    uri = join(bucket, "long.mp4")
    storage.write_atomic(uri, path)
    with open_remote(tmp_path, uri) as remote:
        file = SparseFile(remote.fd, remote.size, remote.present, remote.fetch)
        sampling = Sampling(6, "keyframe")
        sparse, whole = decode_frames(file, sampling), decode_frames(path, sampling)
        assert sparse.frame_times_s == whole.frame_times_s
        assert np.array_equal(sparse.frames, whole.frames)
        assert remote.bytes_fetched < path.stat().st_size / 10
