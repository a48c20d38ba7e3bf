"""The program of a decoding process: `python -m pipeline.video.child SOCKET PIPE MEMORY_MB`, by `child_process`.

It answers the jobs that come over its socket (see `messages`), one after the other. Whatever goes wrong for
one of them is an answer too, as far as this process can still give one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline.errors import RowError
from pipeline.frame_size import from_json
from pipeline.video.file import ByteRange, LocalFile, VideoFile
from pipeline.video.messages import Channel, Message
from pipeline.video.sampling import Sampling
from pipeline.video.shared_frames import SharedFrames
from pipeline.video.sparse_file import SparseFile

if TYPE_CHECKING:
    from pipeline.video.video_info import VideoInfo


class Job:
    """One video to read, and the conversation about it."""

    def __init__(self, channel: Channel, order: Message, frames: SharedFrames) -> None:
        """`order` is a message of the type read; the pixels go into `frames`."""
        self._channel = channel
        self._order = order
        self._frames = frames
        self._frames.begin(free=order["frames_free"])
        self._frame_size = order["frame_size"] and from_json(order["frame_size"])
        self._file = None if order["path"] else channel.take_file()

    def run(self) -> None:
        """Answer with the frames or with an error."""
        try:
            answer, files = self._read()
        except Exception as error:  # whatever a decoder throws is this video's error and nobody else's
            answer, files = _description(error), []
        finally:
            _set_alarm(0)
            if self._file is not None:
                os.close(self._file)
        self._channel.send({**answer, "cpu_s": _cpu_s()}, files)

    def _read(self) -> tuple[Message, list[int]]:
        from pipeline.video.decode import decode_frames

        _import_decoders(self._frame_size is not None)
        self._channel.send({"type": "begun", "cpu_s": _cpu_s()})
        _set_alarm(self._order["alarm_s"])
        video = decode_frames(
            self._video_file(),
            Sampling(**self._order["sampling"]),
            self._frame_size,
            self._order["backend"],
            on_planned=self._planned,
            on_decoder=lambda decoder: self._channel.send({"type": "decoder", "name": decoder}),
            allocate=self._frames.allocate,
        )
        fd, offset = self._frames.locate(video.frames)
        answer = {
            "type": "done",
            "shape": video.frames.shape,
            "offset": offset,
            "frame_times_s": video.frame_times_s,
            "info": asdict(video.info),
            "backend": video.backend,
        }
        return answer, [fd]

    def _video_file(self) -> VideoFile:
        if self._file is None:
            return _local_file(Path(self._order["path"]))
        return SparseFile(self._file, self._order["size"], self._order["present"], self._need)

    def _planned(self, info: VideoInfo) -> None:
        """Wait for the permission to decode."""
        self._ask({"type": "planned", "duration_s": info.duration_s})

    def _need(self, ranges: Sequence[ByteRange]) -> list[list[int]]:
        """Wait for bytes; returns what is at hand then."""
        reply = self._ask({"type": "need", "ranges": ranges})
        if reply["type"] == "lost":
            raise RowError("fetch", "fetch_failed", "the bytes cannot be fetched")
        return reply["present"]

    def _ask(self, question: Message) -> Message:
        """Send a question and wait for the reply; the alarm, which is for work, pauses."""
        _set_alarm(0)
        self._channel.send(question)
        reply = self._channel.receive()
        _set_alarm(reply["alarm_s"])
        return reply


def _local_file(path: Path) -> LocalFile:
    try:
        return LocalFile(path)
    except OSError as error:
        raise RowError("decode", "not_a_video", "this is no file") from error


def _description(error: Exception) -> Message:
    if _is_out_of_memory(error):
        error = RowError("decode", "decoder_out_of_memory", "the decoder was refused more memory")
    if not isinstance(error, RowError):
        error = RowError("decode", "decode_failed", f"{type(error).__name__}: {error}")
    return {"type": "error", "stage": error.stage, "code": error.code, "message": error.message}


def _is_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        # FFmpeg's own error has the number; torch and decord have words for it.
        known = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
        if known or "allocate memory" in str(error).lower() or "bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _import_decoders(is_scaling: bool) -> None:
    """Import what reading a video needs, before its clock starts: once in the life of the process."""
    import av  # noqa: F401
    import decord  # noqa: F401

    if is_scaling:
        import torch

        torch.set_num_threads(1)


def _set_alarm(seconds: float) -> None:
    """Have the kernel end this process after so many seconds; 0: not at all."""
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.0))


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _die_with(pipe: int) -> None:
    """Have the kernel kill this process as soon as nobody holds the other end of `pipe`."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    watch = select.poll()
    watch.register(pipe, 0)
    if watch.poll(0):  # it was let go of before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def _bound(memory_bytes: int) -> None:
    """Refuse allocations beyond `memory_bytes`. (Limits of the address space would count what is only reserved.)"""
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> NoReturn:
    """Serve jobs until the reader hangs up."""
    connection, pipe, memory_mb = map(int, sys.argv[1:4])
    _die_with(pipe)
    most_bytes = memory_mb * 1024 * 1024
    _bound(most_bytes)
    channel = Channel(socket.socket(fileno=connection))
    frames = SharedFrames(most_bytes)
    with contextlib.suppress(EOFError, OSError):
        while True:
            order = channel.receive()
            if order["type"] == "prepare":
                _import_decoders(order["is_scaling"])
            else:
                Job(channel, order, frames).run()
    os._exit(0)  # without the destructors of the decoders


if __name__ == "__main__":
    main()
