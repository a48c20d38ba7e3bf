"""Every kind of hostile file ends as frames or as an error row with a code that fits, and leaves nothing behind."""

import contextlib
import gc
import os
from pathlib import Path

import pytest

from pipeline.errors import RowError
from pipeline.frame_size import FixedSize
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling
from tests.video.hostile import FRAMES, Hostile, corpus
from tests.video.samples import write_video

TIMEOUT_S = 60  # one that hangs is found out; no file of this size takes a tenth of it
SIZE = FixedSize(32, 40)


@pytest.fixture(scope="module")
def reader():
    with VideoReader(Limits(decode_timeout_s=TIMEOUT_S, memory_mb=1024)) as reader:
        yield reader


def outcome(reader: VideoReader, hostile: Hostile, policy: str) -> str:
    try:
        video = reader.read(LocalFile(hostile.path), Sampling(8, policy), SIZE).video
    except RowError as error:
        return error.code
    assert video.frames.shape[1:] == (32, 40, 3)
    assert 1 <= len(video.frames) == len(video.frame_times_s) <= 8
    assert video.frame_times_s == sorted(video.frame_times_s)
    return FRAMES


def children() -> set[str]:
    return {child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()}


def open_files() -> list[str]:
    """Memory and unnamed files that this process holds open; its sockets are other tests' as well."""
    targets = []
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            targets.append(str(link.readlink()))
    return [target for target in targets if "(deleted)" in target]


def check(reader: VideoReader, files: list[Hostile], good: Path) -> None:
    processes_before, files_before = children(), open_files()
    wrong = {
        (hostile.name, policy): found
        for hostile in files
        for policy in ("keyframe", "uniform", "scene")
        if (found := outcome(reader, hostile, policy)) not in hostile.outcomes
    }
    assert wrong == {}
    assert len(reader.read(LocalFile(good), Sampling(4), SIZE).video.frames) == 4
    gc.collect()
    assert len(children() - processes_before) <= 1
    assert len(open_files()) == len(files_before)


def test_a_sample_of_each_kind(reader, tmp_path):
    good = write_video(tmp_path / "good.mp4")
    check(reader, list(corpus(tmp_path / "hostile", cuts=2, flips=6)), good)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_whole_corpus(reader, tmp_path):
    good = write_video(tmp_path / "good.mp4")
    check(reader, list(corpus(tmp_path / "hostile", cuts=20, flips=200)), good)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_memory_stays_flat_over_two_thousand_clips(tmp_path):
    """Resident memory, ours and the process's, in the last quarter within 5 % of the second."""
    clips = [write_video(tmp_path / f"{n}.mp4", frames=20 + n, size=(160, 96)) for n in range(20)]
    ours: list[float] = []
    theirs: list[float] = []
    # Recycling is put out of reach: the process itself has to stay as it is.
    with VideoReader(Limits(videos=10_000, grown_mb=100_000)) as reader:
        others = children()
        for number in range(2000):
            reader.read(LocalFile(clips[number % len(clips)]), Sampling(8), SIZE)
            [child] = children() - others
            theirs.append(resident_mb(child))
            ours.append(resident_mb("self"))
    for quarter in (ours, theirs):
        second, last = sum(quarter[500:1000]) / 500, sum(quarter[1500:]) / 500
        assert last <= 1.05 * second, (second, last)


def resident_mb(process: str) -> float:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
