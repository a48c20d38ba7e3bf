"""Read videos in a process of their own, so that one that hangs, crashes or eats memory costs only itself."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from pipeline.errors import RowError
from pipeline.frame_size import FrameSize, to_json
from pipeline.video.child_process import ChildProcess
from pipeline.video.clock import Clock, ReadTimes
from pipeline.video.decode import DecodedVideo
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reading import Attempt, FetchedFile, ProcessFailed
from pipeline.video.sampling import Backend, Sampling

_OTHER: dict[str | None, str] = {"decord": "pyav", "pyav": "decord"}


@dataclass(frozen=True, kw_only=True)
class ReadVideo(ReadTimes):
    """A video, and what reading it took."""

    video: DecodedVideo


class VideoReader:
    """Reads one video after another in one child process, which is started, replaced and killed as need be.

    A context manager. Threads may share a reader; they wait for each other.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        permit: AbstractContextManager[Any] | None = None,
        child: str = "pipeline.video.child",
    ) -> None:
        """The process is started by the first `read`, or before it by `start`.

        `permit`, a `threading.Lock` for one, is held while the process decodes: readers that share it open and
        fetch their next videos while one of them decodes. `child` is the module that the process runs;
        tests give one that misbehaves.
        """
        self._limits = limits or Limits()
        self._permit = permit or nullcontext()
        self._module = child
        self._one_at_a_time = threading.Lock()
        self._process: ChildProcess | None = None
        self._videos = 0  # that the process has read
        self._least_mb = 0.0  # that it has occupied after one
        self.times = ReadTimes()
        """What the latest `read` took, also when it failed."""

    def start(self, is_scaling: bool) -> None:
        """Start the process, and do not wait for it: the first `read` then finds it ready, or finds out why it is not.

        `is_scaling` says whether frames will be scaled, which takes torch and a second to import it.
        """
        with self._one_at_a_time, suppress(RowError, OSError):
            self._ready_process().send({"type": "prepare", "is_scaling": is_scaling})

    def read(
        self,
        file: LocalFile | FetchedFile,
        sampling: Sampling,
        frame_size: FrameSize | None = None,
        backend: Backend = "auto",
    ) -> ReadVideo:
        """The frames that `sampling` chooses, at `frame_size`, as `decode.decode_frames` returns them.

        They lie in memory that is mapped and not copied, and writable. Where a decoder that `auto` chose dies, or is
        not done after half of the time that is left, the other one is tried once, in a new process.
        Raises RowError: at stage decode those of `decode_frames`, decode_timeout, decoder_crashed and
        decoder_out_of_memory; at stage fetch those of the remote file. The reader can be used again after each.
        """
        job = {"sampling": asdict(sampling), "frame_size": frame_size and to_json(frame_size)}
        clock = Clock(self._limits.decode_timeout_s)
        with self._one_at_a_time:
            try:
                video = self._read(file, job, backend, clock)
            finally:
                self.times = clock.times()
        return ReadVideo(video=video, **asdict(self.times))

    def _read(self, file: LocalFile | FetchedFile, job: dict[str, Any], backend: Backend, clock: Clock) -> DecodedVideo:
        try:
            return self._attempt(file, {**job, "backend": backend}, clock, last=backend != "auto")
        except ProcessFailed as failure:
            first = failure.error
            other = _OTHER.get(failure.decoder)
            if backend != "auto" or other is None or first.code == "decoder_out_of_memory":
                raise first from failure
        try:
            return self._attempt(file, {**job, "backend": other}, clock, last=True)
        except (ProcessFailed, RowError) as failure:
            second = failure.error if isinstance(failure, ProcessFailed) else failure
            message = f"{first.message}; then, with {other}: {second.code}: {second.message}"
            raise RowError(first.stage, first.code, message) from failure

    def _attempt(self, file: LocalFile | FetchedFile, job: dict[str, Any], clock: Clock, last: bool) -> DecodedVideo:
        process = self._ready_process()
        try:
            return Attempt(process, file, clock, self._limits, self._permit, last).run(job)
        finally:
            self._videos += 1
            memory_mb = process.memory_mb()
            self._least_mb = min(self._least_mb or memory_mb, memory_mb)
            if memory_mb > self._least_mb + self._limits.grown_mb or self._videos >= self._limits.videos:
                process.kill()

    def _ready_process(self) -> ChildProcess:
        if self._process is not None and self._process.has_ended():
            self._process.kill()  # it still has files open here
            self._process = None
        if self._process is None:
            self._videos, self._least_mb = 0, 0.0
            try:
                self._process = ChildProcess(self._module, self._limits.memory_mb)
            except OSError as error:
                raise RowError("decode", "decoder_crashed", f"no decoding process can be started: {error}") from error
        return self._process

    def close(self) -> None:
        """Kill the process, if there is one. A later `read` starts another."""
        with self._one_at_a_time:
            if self._process is not None:
                self._process.kill()

    def __enter__(self) -> Self:
        """The reader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()
