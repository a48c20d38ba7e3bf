"""One attempt at one video: the conversation with a decoding process, and how it ends.

A process that goes quiet, takes too much or dies is killed, and the attempt fails with `ProcessFailed`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

from pipeline.errors import RowError
from pipeline.video.child_process import ChildProcess
from pipeline.video.clock import Clock
from pipeline.video.decode import DecodedVideo
from pipeline.video.file import ByteRange, LocalFile
from pipeline.video.limits import Limits
from pipeline.video.messages import Message
from pipeline.video.video_info import VideoInfo

_START_S = 120.0  # for a process to start and import its libraries
_TICK_S = 0.05  # between two looks at its memory
_GRACE_S = 5.0  # how much later than its reader the process's own alarm ends it
_LOST_S = 10.0  # for a decoder to take notice that its bytes will not come
_NEAR = 0.75  # a process that dies, seen with this share of the memory that it may have, has died of that


class FetchedFile(Protocol):
    """A remote file as the fetching side sees it: `pipeline.remote_file.RemoteFile`."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    @property
    def fd(self) -> int:
        """An open file of the full size, into which is written what is fetched."""
        ...

    def fetch(self, ranges: Sequence[ByteRange]) -> Sequence[ByteRange]:
        """Fetch these ranges and return all that is at hand now. Raises RowError at stage fetch."""
        ...


class ProcessFailed(Exception):
    """The process is dead. `error` is what the video has come to; `decoder` was at work, None before the first."""

    def __init__(self, error: RowError, decoder: str | None) -> None:
        """Both are for a caller that may try again."""
        super().__init__(error)
        self.error = error
        self.decoder = decoder


class Attempt:
    """One attempt of a read. Its clock goes on counting where an earlier attempt's stopped."""

    def __init__(
        self,
        process: ChildProcess,
        file: LocalFile | FetchedFile,
        clock: Clock,
        limits: Limits,
        permit: AbstractContextManager[Any],
        last: bool,
    ) -> None:
        """`permit` is held while the process decodes.

        Unless this is the `last` attempt, the first decoder has half of what is left until the deadline.
        """
        self._process = process
        self._file = file
        self._clock = clock
        self._limits = limits
        self._permit = permit
        self._may_halve = not last
        self._stop_at_s = clock.deadline_s  # of work
        self._decoder: str | None = None
        self._planned = False
        self._lost: RowError | None = None
        self._cpu_before: float | None = None
        self._cpu_s = 0.0
        self._held = ExitStack()

    def run(self, job: Message) -> DecodedVideo:
        """Read the video; `job` says how. Raises ProcessFailed, or RowError: then the process is well."""
        with self._clock.during("fetch"):  # what cannot be fetched at all concerns no process
            present = None if isinstance(self._file, LocalFile) else list(self._file.fetch([]))
        outcome: DecodedVideo | RowError | None = None
        try:
            with self._held:
                outcome = self._converse(job, present)
        except (EOFError, OSError) as error:
            raise self._died() from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._failure("decoder_crashed", f"the decoding process broke the protocol: {error}") from error
        finally:
            # What still works after memory ran out, nobody knows.
            if outcome is None or getattr(outcome, "code", None) == "decoder_out_of_memory":
                self._process.kill()
            self._clock.enter("start")
            self._count_cpu()
        if isinstance(outcome, RowError):
            raise self._lost or outcome
        return outcome

    def _converse(self, job: Message, present: list[ByteRange] | None) -> DecodedVideo | RowError:
        self._begin(job, present)
        while True:
            message = self._next()
            match message["type"]:
                case kind if self._clock.starting and kind not in ("begun", "error"):
                    raise ValueError(f"{kind!r} before it began")
                case "begun" if self._clock.starting:
                    self._cpu_before = self._cpu_s = message["cpu_s"]
                    self._clock.enter("open")
                case "need":
                    self._fetch(message["ranges"])
                case "planned" if not self._planned:
                    self._let_decode(message["duration_s"])
                case "decoder":
                    self._blame(message["name"])
                case "done":
                    self._cpu_s = message["cpu_s"]
                    return self._video(message)
                case "error":
                    self._cpu_s = message["cpu_s"]
                    return RowError(message["stage"], message["code"], message["message"])
                case other:
                    raise ValueError(f"an unexpected {other!r}")

    def _begin(self, job: Message, present: list[ByteRange] | None) -> None:
        job = {**job, "type": "read", "frames_free": not self._process.frames.in_use}
        if isinstance(self._file, LocalFile):
            self._send({**job, "path": str(self._file.path.absolute())})
            return
        # Opened anew, for reading alone: the process cannot change what is fetched for it.
        fd = os.open(f"/proc/self/fd/{self._file.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._send({**job, "path": None, "size": self._file.size, "present": present}, [fd])
        finally:
            os.close(fd)

    def _next(self) -> Message:
        """The process's next message. Looks at its time and its memory meanwhile."""
        started = time.monotonic()
        while True:
            left_s = self._stop_at_s - self._clock.worked_s
            if self._clock.starting:
                left_s = started + _START_S - time.monotonic()
            if left_s <= 0:
                raise self._too_late()
            try:
                return self._process.receive(min(left_s, _TICK_S))
            except TimeoutError:
                memory_mb = self._process.memory_mb()
            if memory_mb > self._limits.memory_mb:
                raise self._failure("decoder_out_of_memory", f"it needs more than {self._limits.memory_mb} MiB")

    def _send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message, and in it when the process is to end itself, should this one be held up."""
        self._process.send({**message, "alarm_s": self._clock.left_s + _GRACE_S}, files)

    def _fetch(self, ranges: list[list[int]]) -> None:
        if not isinstance(self._file, LocalFile) and self._lost is None:
            try:
                with self._clock.during("fetch"):
                    present = self._file.fetch([(int(begin), int(end)) for begin, end in ranges])
                self._send({"type": "have", "present": list(present)})
                return
            except RowError as error:
                self._lost = error
                self._stop_at_s = min(self._stop_at_s, self._clock.worked_s + _LOST_S)
        self._send({"type": "lost"})

    def _let_decode(self, duration_s: float | None) -> None:
        self._planned = True
        self._clock.deadline_s = self._stop_at_s = self._limits.deadline_s(duration_s)
        with self._clock.during("wait"):
            self._held.enter_context(self._permit)
        self._clock.enter("decode")
        self._send({"type": "go"})

    def _blame(self, decoder: str) -> None:
        """Remember which decoder is at work, and how long it may be."""
        worked_s, deadline_s = self._clock.worked_s, self._clock.deadline_s
        halve = self._may_halve and self._decoder is None
        self._stop_at_s = (worked_s + deadline_s) / 2 if halve else deadline_s
        self._decoder = str(decoder)

    def _video(self, message: Message) -> DecodedVideo:
        fd = self._process.take_file()
        try:
            frames = self._process.frames.map(fd, message["offset"], tuple(message["shape"]))
        finally:
            os.close(fd)
        times_s = [float(time_s) for time_s in message["frame_times_s"]]
        if len(times_s) != len(frames):
            raise ValueError(f"{len(times_s)} times of {len(frames)} frames")
        return DecodedVideo(frames, times_s, _video_info(message["info"]), message["backend"])

    def _too_late(self) -> Exception:
        if self._clock.starting:
            return self._failure("decoder_crashed", f"the decoding process did not start within {_START_S:g} s")
        doing = f"decoding with {self._decoder}" if self._decoder else "opening it"
        return self._failure("decode_timeout", f"{doing} was not done after {self._clock.worked_s:.1f} s")

    def _died(self) -> Exception:
        how = self._process.kill()
        if how == "SIGALRM":  # this process was held up, and the other one's alarm went off first
            return self._too_late()
        if self._process.peak_mb > _NEAR * self._limits.memory_mb:
            return self._failure("decoder_out_of_memory", f"it needs more than {self._limits.memory_mb} MiB")
        at = f" in {self._decoder}" if self._decoder else ""
        return self._failure("decoder_crashed", f"the decoding process ended{at} with {how}")

    def _failure(self, code: str, message: str) -> Exception:
        self._process.kill()
        return self._lost or ProcessFailed(RowError("decode", code, message), self._decoder)

    def _count_cpu(self) -> None:
        """Add what the process computed since it began with this video."""
        if self._cpu_before is None:
            return
        usage = self._process.usage
        now = usage.ru_utime + usage.ru_stime if usage else self._cpu_s
        self._clock.cpu_s += max(0.0, now - self._cpu_before)


def _video_info(facts: Message) -> VideoInfo:
    """The facts in the types that they must have: results are made of them, and the process may be a hijacked one."""
    seconds = {name: None if facts[name] is None else float(facts[name]) for name in ("duration_s", "fps")}
    return VideoInfo(**seconds, width=int(facts["width"]), height=int(facts["height"]), codec=str(facts["codec"]))
