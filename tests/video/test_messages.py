import os
import socket
import threading
from pathlib import Path

import pytest

from pipeline.video.messages import Channel


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def ends():
    one, other = socket.socketpair()
    channels = Channel(one), Channel(other)
    yield *channels, other
    for channel in channels:
        channel.close()


def test_messages_arrive_one_by_one_and_in_order(ends):
    here, there, _ = ends
    for number in range(3):
        here.send({"number": number, "text": "ä" * number})
    assert [there.receive(1)["number"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TimeoutError):
        there.receive(0.01)


def test_a_long_message_is_put_together(ends):
    here, there, _ = ends
    long = {"ranges": [[number, number + 1] for number in range(100_000)]}
    sender = threading.Thread(target=here.send, args=[long])
    sender.start()
    assert there.receive(20) == long
    sender.join()


def test_open_files_cross(ends, tmp_path):
    here, there, _ = ends
    (tmp_path / "a").write_bytes(b"content")
    with (tmp_path / "a").open("rb") as file:
        here.send({"type": "first"})
        here.send({"type": "second"}, [file.fileno()])
    assert there.receive(1)["type"] == "first"
    assert there.receive(1)["type"] == "second"
    fd = there.take_file()
    assert os.read(fd, 10) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(ValueError, match="without its file"):
        there.take_file()


def test_files_that_nobody_took_are_closed(ends, tmp_path):
    here, there, _ = ends
    before = open_files()
    with (tmp_path / "a").open("wb") as file:
        for _ in range(5):
            here.send({"type": "unwanted"}, [file.fileno()])
            there.receive(1)
    assert open_files() > before
    there.close()
    assert open_files() == before - 1


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\1x", b"\0\0\0\0", b"\0\0\0\2\xff\xfe"])
def test_nonsense_is_refused(ends, data):
    here, _, other = ends
    other.sendall(data)
    with pytest.raises(ValueError):
        here.receive(1)


def test_the_end_is_told_also_in_the_middle_of_a_message(ends):
    here, there, other = ends
    other.sendall(b"\0\0\0\5{")
    there.close()
    with pytest.raises(EOFError):
        here.receive(1)
    with pytest.raises(OSError):
        here.send({})
