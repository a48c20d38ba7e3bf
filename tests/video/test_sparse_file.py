import io
import os
import tempfile
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RowError
from pipeline.video.byte_ranges import byte_count, clipped, merged, without
from pipeline.video.sparse_file import SparseFile
from tests.video.samples import write_video

KIB = 1024
RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


class Storage:
    """Fetches as the other process does: into the same file, and says what is there."""

    def __init__(self, content, head=0):
        self.content = content
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with the test)
        self.file.truncate(len(content))
        self.present = []
        self.asked = []
        self.need([(0, head)])
        self.asked.clear()

    def need(self, ranges):
        self.asked.append(ranges)
        for begin, end in ranges:
            os.pwrite(self.file.fileno(), self.content[begin:end], begin)
        self.present = merged([*self.present, *ranges])
        return [list(one) for one in self.present]  # as they arrive from JSON

    def sparse(self):
        return SparseFile(self.file.fileno(), len(self.content), self.present, self.need)


@pytest.fixture
def noise():
    return np.random.default_rng(0).bytes(2048 * KIB)


def bytes_of(ranges):
    return {place for begin, end in ranges for place in range(begin, end)}


@given(RANGES, RANGES, st.integers(0, 10))
def test_ranges_are_sets_of_bytes(first, second, gap):
    one, other = merged(first), merged(second)
    assert bytes_of(one) == bytes_of(first)
    assert all(end < begin for (_, end), (begin, _) in pairwise(one))
    assert bytes_of(without(one, other)) == bytes_of(first) - bytes_of(second)
    assert merged(without(one, other)) == without(one, other)
    assert byte_count(one) == len(bytes_of(first))
    assert bytes_of(clipped(first, 30)) == {place for place in bytes_of(first) if place < 30}
    wide = merged(first, gap)
    assert bytes_of(wide) >= bytes_of(first)
    assert all(end + gap < begin for (_, end), (begin, _) in pairwise(wide))


def test_ranges_before_the_file_are_cut(noise):
    assert clipped([(-5, 3), (-9, -2), (8, 20)], 10) == [(0, 3), (8, 10)]


def test_what_is_at_hand_is_read_without_asking(noise):
    storage = Storage(noise, head=256 * KIB)
    with storage.sparse().open() as file:
        assert file.read(10) == noise[:10]
        file.seek(100 * KIB)
        assert file.read(1000) == noise[100 * KIB : 100 * KIB + 1000]
        assert file.tell() == 100 * KIB + 1000
    assert storage.asked == []


def test_a_read_before_the_announcement_is_complete(noise):
    storage = Storage(noise, head=256 * KIB)
    with storage.sparse().open() as file:
        file.seek(200 * KIB)
        assert file.read(300 * KIB) == noise[200 * KIB : 500 * KIB]
    assert storage.asked == [[(256 * KIB, 500 * KIB)]]


def test_a_small_read_brings_more_and_readers_in_a_row_ever_more(noise):
    storage = Storage(noise)
    with storage.sparse().open() as file:
        pieces = [file.read(32 * KIB) for _ in range(40)]
    assert b"".join(pieces) == noise[: 40 * 32 * KIB]
    lengths = [end - begin for ((begin, end),) in storage.asked]
    assert lengths == [64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, 1024 * KIB]


def test_reads_here_and_there_bring_little(noise):
    storage = Storage(noise)
    with storage.sparse().open() as file:
        for place in (1900, 300, 1500, 700):
            file.seek(place * KIB)
            assert file.read(8) == noise[place * KIB : place * KIB + 8]
    assert byte_count(storage.present) == 4 * 64 * KIB


def test_announced_ranges_are_asked_for_together(noise):
    storage = Storage(noise, head=256 * KIB)
    sparse = storage.sparse()
    sparse.will_read([(1000 * KIB, 1001 * KIB), (500 * KIB, 600 * KIB), (550 * KIB, 610 * KIB), (0, 100)])
    assert storage.asked == [[(500 * KIB, 610 * KIB), (1000 * KIB, 1001 * KIB)]]
    sparse.will_read([(501 * KIB, 502 * KIB)])
    assert len(storage.asked) == 1


def test_after_the_announcement_a_surplus_is_not_fetched(noise):
    storage = Storage(noise)
    sparse = storage.sparse()
    sparse.will_read([(500 * KIB, 510 * KIB)])
    with sparse.open() as file:
        file.seek(505 * KIB)
        assert file.read(32 * KIB) == noise[505 * KIB : 510 * KIB]
        assert len(storage.asked) == 1
        assert file.read(5) == noise[510 * KIB : 510 * KIB + 5]
        assert len(storage.asked) == 2


def test_a_file_that_is_all_at_hand_has_a_path(noise):
    storage = Storage(noise, head=5)
    sparse = storage.sparse()
    assert sparse.path is None
    sparse.will_read([(0, len(noise))])
    assert sparse.open() == str(sparse.path)
    assert sparse.path.read_bytes() == noise


def test_an_empty_file_is_all_at_hand():
    storage = Storage(b"")
    assert storage.sparse().size == 0
    assert storage.sparse().path.read_bytes() == b""


def test_two_readers_have_their_own_places(noise):
    sparse = Storage(noise).sparse()
    with sparse.open() as one, sparse.open() as two:
        one.seek(100)
        assert two.read(3) == noise[:3]
        assert one.read(3) == noise[100:103]


def test_positions_are_those_of_any_file(noise):
    with Storage(noise[:1000]).sparse().open() as file:
        assert file.seek(-10, io.SEEK_END) == 990
        assert file.seek(4, io.SEEK_CUR) == 994
        assert file.read(100) == noise[994:1000]
        assert file.read(100) == b""
        assert file.seek(5000) == 5000
        assert file.read(1) == b""
        file.seek(0)
        assert file.read() == noise[:1000]
        with pytest.raises(ValueError):
            file.seek(-1)
        with pytest.raises(ValueError):
            file.seek(0, 9)
        file.seek(0)
        into = bytearray(7)
        assert file.readinto(into) == 7
        assert into == noise[:7]
    assert not file.writable()


@pytest.mark.parametrize("index_first", [True, False])
def test_ffmpeg_reads_a_video_through_it(tmp_path, index_first):
    path = write_video(tmp_path / "clip.mp4", frames=200, size=(320, 240), gop=20, index_first=index_first)
    storage = Storage(path.read_bytes(), head=4 * KIB)
    with av.open(str(path)) as whole, av.open(storage.sparse().open()) as sparse:
        for mine, theirs in zip(sparse.decode(video=0), whole.decode(video=0), strict=True):
            assert mine.pts == theirs.pts
            assert np.array_equal(mine.to_ndarray(), theirs.to_ndarray())
    assert len(storage.asked) < 6


@pytest.mark.parametrize("index_first", [True, False])
def test_ffmpeg_reads_announced_keyframes_and_little_else(tmp_path, index_first):
    path = write_noise(tmp_path / "noise.mp4", frames=60, gop=10, index_first=index_first)
    with av.open(str(path)) as container:
        keys = [packet for packet in container.demux(video=0) if packet.is_keyframe]
    places = [(packet.pts, packet.pos, packet.pos + packet.size) for packet in keys][1:]
    storage = Storage(path.read_bytes(), head=64 * KIB)
    sparse = storage.sparse()
    with av.open(sparse.open()):
        pass  # the header, and what FFmpeg tries on the first frames
    sparse.will_read([(begin, end) for _, begin, end in places])
    storage.asked.clear()
    with av.open(sparse.open()) as container:
        stream = container.streams.video[0]
        for pts, _, _ in places:
            container.seek(pts, stream=stream)
            packet = next(container.demux(stream))
            assert packet.is_keyframe
            assert packet.pts == pts
    assert storage.asked == []


def write_noise(path, frames, gop, index_first):
    """An MP4 that no encoder can make small: about 100 KiB a frame."""
    random = np.random.default_rng(1)
    with av.open(str(path), "w", options={"movflags": "faststart"} if index_first else {}) as container:
        options = {"g": str(gop), "crf": "20", "preset": "ultrafast", "sc_threshold": "0"}
        stream = container.add_stream("libx264", rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for _ in range(frames):
            picture = random.integers(0, 256, (240, 320, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_why_bytes_do_not_come_reaches_the_one_who_reads(tmp_path):
    content = write_video(tmp_path / "clip.mp4", frames=200, size=(320, 240)).read_bytes()
    storage = Storage(content, head=4 * KIB)

    def need(_):
        raise RowError("fetch", "forbidden", "the key was withdrawn")

    sparse = SparseFile(storage.file.fileno(), len(content), storage.present, need)
    with pytest.raises(RowError, match="withdrawn"), av.open(sparse.open()) as container:
        for _ in container.demux():
            pass
