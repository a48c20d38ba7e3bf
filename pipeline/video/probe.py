"""What a video file says of itself, and what is wrong with one that is no video.

PyAV opens the container: unlike decord it tells the codec, and why a file cannot be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av

from pipeline.errors import RowError

_BOX_HEADER = 16  # a size of 4 bytes, a type of 4, and 8 more where the size does not fit into 4


@dataclass(frozen=True)
class VideoInfo:
    """Facts of the first video stream; what the container does not say is None.

    `duration_s` in seconds, `fps` the average rate, `width` x `height` in pixels as coded.
    """

    duration_s: float | None
    fps: float | None
    width: int
    height: int
    codec: str


def probe(path: Path) -> VideoInfo:
    """Read the header of a local file. Raises RowError at stage decode.

    empty_file, not_a_video, truncated (the index or part of the data is missing), no_video_stream.
    """
    if not path.is_file():
        raise RowError("decode", "not_a_video", "this is no file")
    if path.stat().st_size == 0:
        raise RowError("decode", "empty_file", "the file has no bytes")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise RowError("decode", "no_video_stream", "the file has no video stream")
            return _describe(container, container.streams.video[0])
    except (av.FFmpegError, ValueError) as error:  # ValueError: header texts that are not UTF-8
        code = "truncated" if is_cut_short(path) else "not_a_video"
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise RowError("decode", code, f"the container cannot be read: {reason}") from error


def _describe(container: av.container.InputContainer, stream: av.VideoStream) -> VideoInfo:
    duration_s = None
    if stream.duration is not None and stream.time_base is not None:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        duration_s = container.duration / av.time_base
    return VideoInfo(
        duration_s=duration_s,
        fps=float(stream.average_rate) if stream.average_rate else None,
        width=stream.codec_context.width,
        height=stream.codec_context.height,
        codec=stream.codec_context.codec.canonical_name,
    )


def is_cut_short(path: Path) -> bool:
    """Whether an MP4 or MOV file ends inside one of its top-level boxes (ISO 14496-12, 4.2).

    False for every other format: only here does the file itself say how long it should be.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(8)[4:] != b"ftyp":
            return False
        start = 0
        while start < size:
            file.seek(start)
            header = file.read(_BOX_HEADER)
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:  # the last box: it reaches to the end of the file
                length = size - start
            if length < 8:
                return len(header) < 8  # a header that is cut itself; else damage, not a missing end
            start += length
    return start > size
