"""What becomes of a decoding process when the one that asked ends, and what it is given to begin with."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import RowError
from pipeline.video.child_process import ChildProcess
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling

MISBEHAVING = "tests.video.misbehaving_child"
# Reads a video in a thread, prints the decoding process's id, and goes on.
PARENT = """
import sys, threading, time
from pathlib import Path
from pipeline.video.file import LocalFile
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling

reader = VideoReader(child="tests.video.misbehaving_child")
def read(name):
    path = Path(sys.argv[1]) / f"{name}.mp4"
    path.touch()
    return reader.read(LocalFile(path), Sampling(8), backend="pyav")
first = threading.Thread(target=read, args=["fine"])
first.start()
first.join()
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def ends(pid: int, within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while runs(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not runs(pid)


def started(folder: Path, then: str) -> tuple[subprocess.Popen, list[int]]:
    """A process that runs PARENT and `then`, and the numbers of the line that it prints."""
    program = PARENT + textwrap.dedent(then)
    parent = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    return parent, [int(word) for word in parent.stdout.readline().split()]


SHOW = "print(reader._process._process.pid, flush=True)\n"


@pytest.mark.parametrize("busy_with", ["nothing", "hang", "hang@open"])
def test_it_dies_with_its_starter(tmp_path, busy_with):
    then = SHOW + ("time.sleep(60)" if busy_with == "nothing" else f"read('{busy_with}')")
    parent, [child] = started(tmp_path, then)
    assert runs(child)  # though the thread that started it has ended
    time.sleep(0.2)
    parent.kill()
    parent.communicate()
    assert ends(child)


def test_it_dies_with_its_starter_even_when_it_is_stopped(tmp_path):
    parent, [child] = started(tmp_path, SHOW + "time.sleep(60)")
    os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    assert ends(child)


def test_a_fork_of_its_starter_does_not_keep_it_alive(tmp_path):
    fork = """
    import os, signal
    fork = os.fork()
    if not fork:
        time.sleep(60)
        os._exit(0)
    print(reader._process._process.pid, fork, flush=True)
    time.sleep(60)
    """
    parent, [child, fork] = started(tmp_path, fork)
    parent.kill()
    try:
        assert ends(child)
        assert runs(fork)
    finally:
        os.kill(fork, signal.SIGKILL)
    parent.communicate()


def test_a_fork_of_its_starter_reads_with_a_process_of_its_own(tmp_path):
    fork = """
    import os
    mine = reader._process._process.pid
    fork = os.fork()
    if not fork:
        read("fine")
        os._exit(0 if reader._process._process.pid != mine else 1)
    status = os.waitpid(fork, 0)[1]
    read("fine")
    print(status, mine == reader._process._process.pid, flush=True)
    """
    program = PARENT + textwrap.dedent(fork)
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr) == ("0 True\n", "")


def test_it_ends_itself_when_its_starter_is_held_up(tmp_path):
    # The starter's own clock stands still with it; the alarm of the process does not.
    limited = """
    from pipeline.video import reading
    from pipeline.video.limits import Limits
    reading._GRACE_S = 0.5
    reader = VideoReader(Limits(decode_timeout_s=1), child="tests.video.misbehaving_child")
    read("fine")
    """
    parent, [child] = started(tmp_path, textwrap.dedent(limited) + SHOW + "read('hang')")
    time.sleep(0.3)
    parent.send_signal(signal.SIGSTOP)
    try:
        assert ends(child, within_s=20)
    finally:
        parent.kill()
    parent.communicate()


def test_a_process_that_is_killed_from_outside_costs_one_video(tmp_path):
    (tmp_path / "hang.mp4").touch()
    (tmp_path / "fine.mp4").touch()
    with VideoReader(Limits(), child=MISBEHAVING) as reader:
        reader.read(LocalFile(tmp_path / "fine.mp4"), Sampling(8))
        child = reader._process._process.pid
        threading.Timer(0.3, os.kill, [child, signal.SIGKILL]).start()
        with pytest.raises(RowError) as caught:
            reader.read(LocalFile(tmp_path / "hang.mp4"), Sampling(8), backend="pyav")
        assert (caught.value.code, "SIGKILL" in caught.value.message) == ("decoder_crashed", True)
        reader.read(LocalFile(tmp_path / "fine.mp4"), Sampling(8))


def test_a_process_that_died_between_two_videos_costs_none(tmp_path):
    (tmp_path / "fine.mp4").touch()
    with VideoReader(Limits(), child=MISBEHAVING) as reader:
        reader.read(LocalFile(tmp_path / "fine.mp4"), Sampling(8))
        child = reader._process._process.pid
        os.kill(child, signal.SIGKILL)
        assert ends(child)
        reader.read(LocalFile(tmp_path / "fine.mp4"), Sampling(8))


def test_a_program_that_cannot_start_is_an_error_of_the_row(tmp_path):
    (tmp_path / "fine.mp4").touch()
    with VideoReader(child="pipeline.video.no_such_module") as reader, pytest.raises(RowError) as caught:
        reader.read(LocalFile(tmp_path / "fine.mp4"), Sampling(8))
    assert (caught.value.code, "status 1" in caught.value.message) == ("decoder_crashed", True)


def test_it_gets_no_secrets_and_no_files_but_its_own(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "0123456789abcdef")
    process = ChildProcess("pipeline.video.child", memory_mb=512)
    try:
        pid = process._process.pid
        folder = Path(f"/proc/{pid}")
        until = time.monotonic() + 20
        while resource.prlimit(pid, resource.RLIMIT_CORE) != (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
        assert resource.prlimit(pid, resource.RLIMIT_DATA) == (512 << 20, 512 << 20)
        environment = (folder / "environ").read_bytes()
        assert b"0123456789abcdef" not in environment
        assert b"OMP_NUM_THREADS=1\0" in environment
        kinds = [str(path.readlink()).partition(":")[0] for path in (folder / "fd").iterdir()]
        assert sorted(kinds) == ["/dev/null"] * 3 + ["pipe", "socket"]
    finally:
        process.kill()


def test_whoever_asks_loads_no_decoder():
    program = "import sys, pipeline.video.reader; print(sorted({'av', 'decord', 'torch', 'fsspec'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]"
