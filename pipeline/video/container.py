"""Open a video file with FFmpeg's demuxers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import av
from av.container import InputContainer
from av.stream import Discard, Disposition
from av.video.stream import VideoStream as AvVideoStream

from pipeline.errors import RowError
from pipeline.video.file import VideoFile
from pipeline.video.mp4_boxes import is_cut_short, read_index

# Containers that hold a video themselves. Playlists and scripts, which FFmpeg reads too, name other files:
# whoever may put a video into an archive could have this machine read them.
_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,vob,flv,live_flv,asf,ogg,ivf,obu,av1,h264,hevc,vvc,m4v,"
    "h263,vc1,vc1test,mxf,gxf,nut,rm,wtv,dv,y4m,yuv4mpegpipe,gif,apng,mjpeg,mp3,aac,wav,flac,"
    "3gp,swf,nsv,ivr,dirac,webp_pipe,png_pipe,jpeg_pipe,bmp_pipe"
)
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails  # the cover of an album, the tiles of a player


@dataclass(frozen=True)
class OpenVideo:
    """A file as FFmpeg sees it: its container, nothing read from it yet, and the video stream of it."""

    file: VideoFile
    container: InputContainer
    stream: AvVideoStream

    @property
    def is_mp4(self) -> bool:
        """Whether the container is MP4 or MOV."""
        return "mp4" in self.container.format.name.split(",")

    @cached_property
    def moov(self) -> memoryview | None:
        """The index of an MP4; None in any other container, and where it is missing."""
        return read_index(self.file) if self.is_mp4 else None


@contextmanager
def open_video(file: VideoFile) -> Iterator[OpenVideo]:
    """Open a file that came from anywhere; of its packets only those of the video stream are going to be read.

    Raises RowError at stage decode: empty_file, not_a_video, truncated (an MP4 that ends before it says it
    does), no_video_stream.
    """
    if file.path is not None and not file.path.is_file():
        raise RowError("decode", "not_a_video", "this is no file")
    if file.size == 0:
        raise RowError("decode", "empty_file", "the file has no bytes")
    source = file.open()
    try:
        with _open(source, file) as container:
            yield OpenVideo(file, container, _video_stream(container))
    finally:
        if not isinstance(source, str):
            source.close()


def _open(source: str | BinaryIO, file: VideoFile) -> InputContainer:
    try:
        # Texts in a header that are not UTF-8 are no reason to refuse the pictures.
        return av.open(source, options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        code = "truncated" if is_cut_short(file) else "not_a_video"
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise RowError("decode", code, f"the container cannot be read: {reason}") from error


def _video_stream(container: InputContainer) -> AvVideoStream:
    """The first stream of moving pictures; every other is skipped when packets are read."""
    streams = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not streams:
        raise RowError("decode", "no_video_stream", "the file has no video stream")
    for other in container.streams:
        if other.index != streams[0].index:
            other.discard = Discard.all
    return streams[0]
