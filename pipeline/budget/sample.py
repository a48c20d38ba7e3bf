"""Sampled videos read as the job's decoders would read them: what they are, and what fetching and decoding takes."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.budget.census import Question, SampledVideo
from pipeline.config import JobConfig
from pipeline.errors import RowError
from pipeline.frame_size import FrameSize
from pipeline.remote_file import FileChanged, RemoteFile
from pipeline.storage import fetch_errors, local_path
from pipeline.video.file import LocalFile
from pipeline.video.limits import Limits
from pipeline.video.reader import VideoReader
from pipeline.video.sampling import Sampling


@dataclass(frozen=True)
class ReadSample:
    """A sampled video after its frames were taken: `size` is height and width in pixels as the model sees them.

    `file_bytes` is how large the file is, `fetched_bytes` what was transferred of it (all of a local file counts, as
    in result rows). Seconds are of this machine. `frames` uint8 [T, H, W, 3] is kept of the first videos only.
    """

    rows: int
    questions: list[Question]
    frame_count: int
    size: tuple[int, int]
    duration_s: float | None
    codec: str
    shown: str
    file_bytes: int
    fetched_bytes: int
    fetch_s: float
    decode_s: float
    decode_cpu_s: float
    frame_times_s: tuple[float, ...]
    frames: np.ndarray | None


@dataclass(frozen=True)
class VideoSample:
    """The sampled videos that could be read, and the error codes of the `asked` ones that could not."""

    asked: int
    videos: list[ReadSample]
    failures: dict[str, int]

    @property
    def readable_share(self) -> float:
        """Of the videos."""
        return len(self.videos) / self.asked if self.asked else 0.0


def read_sample(
    config: JobConfig,
    videos: list[SampledVideo],
    default_frames: int,
    frame_size: FrameSize,
    keep: int,
    told: Callable[[int], None] = lambda done: None,
) -> VideoSample:
    """Read every sampled video once, in a child process under the job's limits; of `keep` of them keep the frames.

    `told` hears how many are done. A video that fails is counted.
    """
    video = config.video
    limits = Limits(decode_timeout_s=video.decode_timeout_s, memory_mb=video.decoder_memory_mb)
    usual = Sampling(default_frames if video.frames == "auto" else video.frames, video.policy, video.fps)
    found: list[ReadSample] = []
    failures: Counter[str] = Counter()
    with VideoReader(limits) as reader:
        for done, sampled in enumerate(videos, 1):
            sampling = replace(
                usual, frames=sampled.frames or usual.frames, start_s=sampled.start_s, end_s=sampled.end_s
            )
            try:
                found.append(_read(reader, sampled, sampling, frame_size, config, len(found) < keep))
            except RowError as error:
                failures[error.code] += 1
            told(done)
    return VideoSample(len(videos), found, dict(failures.most_common()))


def _read(
    reader: VideoReader, video: SampledVideo, sampling: Sampling, frame_size: FrameSize, config: JobConfig, keep: bool
) -> ReadSample:
    with _opened(video.uri, config.failures.retries) as file:
        try:
            read = reader.read(file, sampling, frame_size, config.video.backend)
        except FileChanged:
            read = reader.read(file, sampling, frame_size, config.video.backend)
        info, frames = read.video.info, read.video.frames
        return ReadSample(
            rows=video.rows,
            questions=video.questions,
            frame_count=int(frames.shape[0]),
            size=(int(frames.shape[1]), int(frames.shape[2])),
            duration_s=info.duration_s,
            codec=info.codec,
            shown=f"{info.width}x{info.height}",
            file_bytes=file.size,
            fetched_bytes=file.bytes_fetched if isinstance(file, RemoteFile) else file.size,
            fetch_s=read.fetch_s,
            decode_s=read.open_s + read.decode_s,
            decode_cpu_s=read.cpu_s,
            frame_times_s=tuple(read.video.frame_times_s),
            frames=np.array(frames) if keep else None,  # the reader's own memory is used again
        )


@contextmanager
def _opened(uri: str, retries: int) -> Iterator[LocalFile | RemoteFile]:
    path = local_path(uri)
    if path is None:
        with RemoteFile(uri, retries, Path(tempfile.gettempdir())) as remote:
            yield remote
        return
    with fetch_errors(uri):
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # whatever lies there, it does not wait for a writer
        file = LocalFile(path)
    yield file
