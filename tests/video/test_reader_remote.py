"""A remote file's bytes are fetched by the process that reads, for the one that decodes."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.video.byte_ranges import byte_count, clipped, merged
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling
from tests.video.samples import read_number, write_video

FOUR = Sampling(4, "uniform")


class Remote:
    """Bytes that arrive when they are asked for: after a while, or not any more."""

    def __init__(self, content: bytes, takes_s: float = 0.0, fails_after: int | None = None) -> None:
        self.content = content
        self.size = len(content)
        self.takes_s = takes_s
        self.fails_after = fails_after  # so many fetches; -1: nothing is there at all
        self.fetches = 0
        self.at_hand = []
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as this object
        self.fd = self.file.fileno()
        os.truncate(self.fd, self.size)

    def fetch(self, ranges):
        if self.fails_after == -1:
            raise RowError("fetch", "not_found", "there is no such object")
        if ranges:
            if self.fetches == self.fails_after:
                raise RowError("fetch", "forbidden", "no more of it")
            self.fetches += 1
            time.sleep(self.takes_s)
        for begin, end in clipped(ranges, self.size):
            os.pwrite(self.fd, self.content[begin:end], begin)
        self.at_hand = merged([*self.at_hand, *clipped(ranges, self.size)])
        return self.at_hand


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    rng = np.random.default_rng(0)
    path = write_video(tmp_path_factory.mktemp("remote") / "a.mp4", frames=120, gop=12, index_first=True)
    # Bytes that no player looks at, so that there is something that need not be fetched.
    return path.read_bytes() + (1 << 20).to_bytes(4, "big") + b"free" + rng.bytes((1 << 20) - 8)


@pytest.fixture(scope="module")
def reader():
    with VideoReader(Limits(decode_timeout_s=20)) as shared:
        yield shared


def test_only_what_is_needed_is_fetched(reader, content):
    remote = Remote(content)
    read = reader.read(remote, Sampling(2, "uniform", start_s=6))
    assert [read_number(frame) for frame in read.video.frames] == [60, 119]
    assert 0 < byte_count(remote.at_hand) < remote.size // 2


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_a_remote_file_gives_the_frames_of_a_local_one(tmp_path, reader, content, backend):
    (tmp_path / "a.mp4").write_bytes(content)
    local = reader.read(LocalFile(tmp_path / "a.mp4"), FOUR, backend=backend).video
    remote = reader.read(Remote(content), FOUR, backend=backend).video
    assert np.array_equal(remote.frames, local.frames)
    assert remote.frame_times_s == local.frame_times_s
    assert remote.info == local.info


def test_waiting_for_bytes_does_not_count(content):
    with VideoReader(Limits(decode_timeout_s=1.5)) as reader:
        read = reader.read(Remote(content, takes_s=1.0), FOUR, backend="decord")
    assert read.fetch_s >= 2.0  # the header, and all of it
    assert read.open_s + read.decode_s < 1.5


@pytest.mark.parametrize(("fails_after", "code"), [(-1, "not_found"), (0, "forbidden"), (1, "forbidden")])
def test_bytes_that_do_not_come_are_the_error_and_the_process_goes_on(reader, content, fails_after, code):
    reader.read(Remote(content), FOUR)
    before = reader._process._process.pid
    with pytest.raises(RowError) as caught:
        reader.read(Remote(content, fails_after=fails_after), FOUR, backend="decord")
    assert (caught.value.stage, caught.value.code) == ("fetch", code)
    reader.read(Remote(content), FOUR)
    assert reader._process._process.pid == before


def test_a_mistake_in_fetching_does_not_leave_a_process_waiting(content):
    class Broken(Remote):
        def fetch(self, ranges):
            return super().fetch(ranges) if not ranges else 1 / 0

    with VideoReader() as reader:
        with pytest.raises(ZeroDivisionError):
            reader.read(Broken(content), FOUR)
        assert len(reader.read(Remote(content), FOUR).video.frames) == 4


def test_the_file_of_the_fetched_bytes_is_closed_after_each_video(reader, content):
    def open_files() -> set[str]:
        return {path.name for path in Path(f"/proc/{reader._process._process.pid}/fd").iterdir()}

    reader.read(Remote(content), FOUR)
    before = open_files()
    for _ in range(3):
        reader.read(Remote(content), FOUR)
    assert open_files() == before
