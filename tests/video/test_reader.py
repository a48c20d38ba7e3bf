"""A reader outlives whatever its decoding processes do, and says of each video what became of it."""

import contextlib
import os
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RowError
from pipeline.video.file import LocalFile
from pipeline.video.limits import MOST_HOURS, Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling
from tests.video.misbehaving_child import PIXELS
from tests.video.samples import read_number, write_video

MISBEHAVING = "tests.video.misbehaving_child"
EIGHT = Sampling(8, "uniform")


def named(folder, name: str) -> LocalFile:
    path = folder / f"{name}.mp4"
    path.touch()
    return LocalFile(path)


@pytest.fixture(scope="module")
def reader():
    with VideoReader(Limits(memory_mb=400), child=MISBEHAVING) as shared:
        yield shared


@pytest.fixture(scope="module")
def hasty():
    """A reader for what never ends."""
    with VideoReader(Limits(decode_timeout_s=1, seconds_per_hour=60), child=MISBEHAVING) as shared:
        yield shared


def error_of(reader, file, backend="pyav") -> RowError:
    with pytest.raises(RowError) as caught:
        reader.read(file, EIGHT, backend=backend)
    return caught.value


def process_of(reader) -> int:
    return reader._process._process.pid


def test_frames_arrive_as_the_process_decoded_them(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=40, fps=10)
    with VideoReader() as reader:
        read = reader.read(LocalFile(path), Sampling(4, "uniform"))
        again = reader.read(LocalFile(path), Sampling(2, "uniform", start_s=1.0, end_s=1.2))
    assert [read_number(frame) for frame in read.video.frames] == [0, 13, 26, 39]
    assert read.video.frame_times_s == pytest.approx([0.0, 1.3, 2.6, 3.9])
    assert (read.video.info.codec, read.video.info.width, read.video.info.height) == ("h264", 64, 48)
    assert read.video.backend in ("decord", "pyav")
    assert [read_number(frame) for frame in again.video.frames] == [10, 11]


def test_frames_come_at_the_size_of_the_model(tmp_path):
    from pipeline.frame_size import FixedSize

    path = write_video(tmp_path / "a.mp4", frames=4)
    with VideoReader() as reader:
        assert reader.read(LocalFile(path), EIGHT, FixedSize(24, 32)).video.frames.shape == (4, 24, 32, 3)


def test_a_process_that_is_started_ahead_has_its_libraries_before_the_first_video(tmp_path):
    from pipeline.frame_size import FixedSize

    path = write_video(tmp_path / "a.mp4", frames=4)
    with VideoReader() as reader:
        reader.start(is_scaling=True)
        number = process_of(reader)
        maps = Path(f"/proc/{number}/maps")
        until = time.monotonic() + 60
        while not all(name in maps.read_text() for name in ("libdecord", "libtorch")) and time.monotonic() < until:
            time.sleep(0.05)
        assert all(name in maps.read_text() for name in ("libdecord", "libtorch"))
        assert reader.read(LocalFile(path), EIGHT, FixedSize(24, 32)).video.frames.shape == (4, 24, 32, 3)
        assert process_of(reader) == number


def test_a_process_that_dies_before_the_first_video_is_replaced(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=4)
    with VideoReader() as reader:
        reader.start(is_scaling=False)
        number = process_of(reader)
        os.kill(number, signal.SIGKILL)
        os.waitid(os.P_PID, number, os.WEXITED | os.WNOWAIT)
        assert len(reader.read(LocalFile(path), EIGHT).video.frames) == 4
        assert process_of(reader) != number


def test_what_keeps_a_process_from_starting_is_told_by_the_first_read(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no more processes")

    monkeypatch.setattr("pipeline.video.reader.ChildProcess", refuse)
    with VideoReader() as reader:
        reader.start(is_scaling=True)
        error = error_of(reader, named(tmp_path, "fine"))
    assert (error.stage, error.code) == ("decode", "decoder_crashed")
    assert "no more processes" in error.message


def test_frames_are_mapped_and_can_be_written(tmp_path, reader):
    frames = reader.read(named(tmp_path, "fine"), EIGHT).video.frames
    expected = np.arange(np.prod(PIXELS), dtype=np.uint8).reshape(PIXELS)
    assert np.array_equal(frames, expected)
    frames[0] = 7
    base = frames
    while isinstance(base, np.ndarray):
        base = base.base
    assert type(getattr(base, "obj", base)).__name__ == "mmap"


def test_frames_stay_what_they_are_while_later_videos_are_read(tmp_path, reader):
    def zeroed() -> np.ndarray:
        frames = reader.read(named(tmp_path, "fine"), EIGHT).video.frames
        frames[...] = 0
        return frames

    kept = [zeroed() for _ in range(3)]
    reader.read(named(tmp_path, "fine"), EIGHT)
    assert not any(frames.any() for frames in kept)


def test_what_is_wrong_with_a_video_is_told_and_the_process_goes_on(tmp_path, reader):
    reader.read(named(tmp_path, "fine"), EIGHT)
    before = process_of(reader)
    assert error_of(reader, named(tmp_path, "fail")).code == "truncated"
    mistake = error_of(reader, named(tmp_path, "mistake"))
    assert (mistake.code, "a mistake of ours" in mistake.message) == ("decode_failed", True)
    (tmp_path / "gone.mp4").touch()
    gone = LocalFile(tmp_path / "gone.mp4")
    gone.path.unlink()
    assert error_of(reader, gone).code == "not_a_video"
    assert process_of(reader) == before


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("crash", "decoder_crashed", "in pyav with SIGSEGV"),
        ("crash@open", "decoder_crashed", "ended with SIGSEGV"),
        ("exit", "decoder_crashed", "status 3"),
        ("memory", "decoder_out_of_memory", "memory"),
        ("memory-abort", "decoder_out_of_memory", "400 MiB"),
        ("memory-shared", "decoder_out_of_memory", "400 MiB"),
        ("memory-ffmpeg", "decoder_out_of_memory", "memory"),
        ("garbage", "decoder_crashed", "protocol"),
        ("no-json", "decoder_crashed", "protocol"),
        ("unknown-type", "decoder_crashed", "protocol"),
    ],
)
def test_a_decoder_that_misbehaves_costs_one_video(tmp_path, reader, name, code, says):
    error = error_of(reader, named(tmp_path, name))
    assert (error.stage, error.code) == ("decode", code)
    assert says in error.message
    assert reader.read(named(tmp_path, "fine"), EIGHT).video.frames.shape == PIXELS


@pytest.mark.parametrize(
    ("name", "doing"), [("hang", "decoding with pyav"), ("hang@open", "opening it"), ("half-a-message", "decoding")]
)
def test_a_decoder_that_never_ends_is_ended(tmp_path, hasty, name, doing):
    error = error_of(hasty, named(tmp_path, name))
    assert (error.stage, error.code) == ("decode", "decode_timeout")
    assert doing in error.message
    assert hasty.read(named(tmp_path, "fine"), EIGHT).video.frames.shape == PIXELS


def test_a_flood_of_messages_goes_nowhere(tmp_path, reader, capfd):
    reader.read(named(tmp_path, "flood"), EIGHT)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["hang@decord", "crash@decord", "exit@decord"])
def test_the_other_decoder_has_a_try_where_the_first_one_dies(tmp_path, hasty, name):
    assert hasty.read(named(tmp_path, name), EIGHT).video.backend == "pyav"


def test_both_tries_of_auto_end_within_one_deadline_and_the_first_names_the_error(tmp_path, hasty):
    error = error_of(hasty, named(tmp_path, "hang"), backend="auto")
    assert error.code == "decode_timeout"
    assert "then, with pyav: decode_timeout" in error.message
    # The second try goes on where the first one stopped: two deadlines would be 2 s.
    assert 1.0 <= hasty.times.open_s + hasty.times.decode_s < 1.9


def test_a_video_that_cannot_be_opened_is_not_tried_twice(tmp_path, reader):
    assert "then" not in error_of(reader, named(tmp_path, "crash@open"), backend="auto").message


def test_a_long_video_has_more_time(tmp_path, hasty):
    assert error_of(hasty, named(tmp_path, "hang+60")).code == "decode_timeout"  # a minute is worth a second here
    assert hasty.times.open_s + hasty.times.decode_s >= 2.0


def test_deadlines_follow_the_documented_rule():
    limits = Limits(decode_timeout_s=100, seconds_per_hour=10)
    assert limits.deadline_s(None) == 100
    assert limits.deadline_s(1800) == 105
    assert limits.deadline_s(-5) == limits.deadline_s(float("nan")) == 100
    assert limits.deadline_s(1e12) == 100 + 10 * MOST_HOURS


def test_a_process_is_replaced_after_so_many_videos_and_when_it_grows(tmp_path):
    limits = Limits(videos=2, grown_mb=24)
    with VideoReader(limits, child=MISBEHAVING) as reader:
        ids = []
        for name in ("fine", "fine", "fine", "leak", "fine"):
            reader.read(named(tmp_path, name), EIGHT)
            ids.append(process_of(reader))
        assert ids[0] == ids[1] != ids[2] == ids[3] != ids[4]
    with VideoReader(Limits(grown_mb=24), child=MISBEHAVING) as reader:
        ids = []
        for name in ("fine", "leak", "fine"):
            reader.read(named(tmp_path, name), EIGHT)
            ids.append(process_of(reader))
        assert ids[0] == ids[1] != ids[2]


def test_waiting_for_the_permission_does_not_count(tmp_path):
    permit = threading.Lock()
    with VideoReader(Limits(decode_timeout_s=1), permit, MISBEHAVING) as reader:
        reader.read(named(tmp_path, "fine"), EIGHT)
        permit.acquire()
        threading.Timer(1.5, permit.release).start()
        assert reader.read(named(tmp_path, "fine"), EIGHT).wait_s > 1.0
        assert not permit.locked()
        error_of(reader, named(tmp_path, "crash"))
        assert not permit.locked()


def test_readers_with_one_permit_decode_in_turn(tmp_path):
    permit = threading.Lock()
    spans = []

    def read_two() -> None:
        with VideoReader(Limits(), permit, MISBEHAVING) as reader:
            spans.extend(reader.read(named(tmp_path, "slow"), EIGHT).video.frame_times_s for _ in range(2))

    threads = [threading.Thread(target=read_two) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans.sort()
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_threads_can_share_a_reader(tmp_path, reader):
    shapes = []
    threads = [
        threading.Thread(target=lambda: shapes.append(reader.read(named(tmp_path, "fine"), EIGHT).video.frames.shape))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == [PIXELS] * 4


def test_cpu_time_is_that_of_the_video(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=60, size=(320, 240))
    with VideoReader() as reader:
        first, second = (reader.read(LocalFile(path), Sampling(30, "uniform")) for _ in range(2))
    for read in (first, second):
        assert 0 < read.cpu_s < 1  # the imports take more
    assert reader.times.cpu_s == second.cpu_s


def test_nothing_is_left_behind(tmp_path):
    before = len(names("/proc/self/fd"))
    kinds = ("fine", "crash", "garbage", "fail", "hang", "memory")
    reader = VideoReader(Limits(decode_timeout_s=1, memory_mb=300), child=MISBEHAVING)
    for kind in kinds:
        with contextlib.suppress(RowError):
            reader.read(named(tmp_path, kind), EIGHT)
    reader.read(named(tmp_path, "fine"), EIGHT)
    child = process_of(reader)
    reader.close()
    reader.close()
    assert len(names("/proc/self/fd")) == before
    assert not Path(f"/proc/{child}").exists()
    assert "memfd:frames" not in Path("/proc/self/maps").read_text()  # a mapping would keep the memory
    assert names(tmp_path) == {f"{kind}.mp4" for kind in kinds}


def names(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_a_reader_that_nobody_closed_ends_its_process(tmp_path):
    reader = VideoReader(child=MISBEHAVING)
    reader.read(named(tmp_path, "fine"), EIGHT)
    process = reader._process._process
    del reader
    assert process.wait(20) in (0, -signal.SIGKILL)  # it hears of the end, or the kernel is faster
