"""What a video file says of itself, and what is wrong with one that is no video.

FFmpeg opens the container through PyAV: unlike decord it tells the codec, and why a file cannot be read.
"""

from __future__ import annotations

from itertools import islice

import av

from pipeline.errors import RowError
from pipeline.video.container import OpenVideo, open_video
from pipeline.video.file import VideoFile
from pipeline.video.mp4 import read_rotation
from pipeline.video.mp4_boxes import read_bytes
from pipeline.video.video_info import VideoInfo, VideoStream, shown_size

MOST_PIXELS = 8192 * 8192
"""Of one frame: 8K has half as many, and a decoder keeps up to 17 frames of a stream at once."""

_WIDEST_PIXEL = 4.0  # the widest in use are 2.4 times as wide as high; beyond is damage, and would be a huge picture
_MOST_FPS = 10_000  # beyond is the clock of a container (60,000 in a bare DV stream), taken for a rate
_PROJECTION = b"\x76\x70"  # Matroska's element for it, among the tracks
_TRACKS_WITHIN = 64 << 10  # bytes from the begin of the file
_FIRST_PACKETS = 64  # how many may come before the first frame


def probe(file: VideoFile) -> VideoStream:
    """Read the header of a file. Raises RowError at stage decode.

    empty_file, not_a_video, truncated (the index or part of the data is missing), no_video_stream,
    frame_too_large (more than MOST_PIXELS), decode_failed (a codec that FFmpeg does not know, no frame size).
    """
    with open_video(file) as video:
        return describe(video)


def describe(video: OpenVideo) -> VideoStream:
    """What the header of an open video says; what is read next from it stays what it was. Errors as `probe`."""
    context = video.stream.codec_context
    if context is None:
        raise RowError("decode", "decode_failed", "no decoder knows the video's codec")
    if context.width <= 0 or context.height <= 0:
        raise RowError("decode", "decode_failed", "the file does not say how large its frames are")
    if context.width * context.height > MOST_PIXELS:
        raise RowError("decode", "frame_too_large", f"frames of {context.width} x {context.height} pixels")
    rotation = _rotation(video)
    aspect = float(video.stream.sample_aspect_ratio or 1)
    if not 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL:
        aspect = 1.0
    width, height = shown_size(context.width, context.height, rotation, aspect)
    return VideoStream(
        info=VideoInfo(
            duration_s=_duration_s(video),
            fps=_fps(video),
            width=width,
            height=height,
            codec=context.codec.canonical_name,
        ),
        index=video.stream.index,
        coded_width=context.width,
        coded_height=context.height,
        rotation=rotation,
        pixel_aspect=aspect,
        pixel_format=context.pix_fmt,
    )


def _duration_s(video: OpenVideo) -> float | None:
    if video.stream.duration is not None and video.stream.time_base is not None:
        return float(video.stream.duration * video.stream.time_base)
    return video.container.duration / av.time_base if video.container.duration is not None else None


def _fps(video: OpenVideo) -> float | None:
    rate = video.stream.average_rate
    if rate and rate > _MOST_FPS:
        rate = video.stream.guessed_rate
    return float(rate) if rate and rate <= _MOST_FPS else None


def _rotation(video: OpenVideo) -> int:
    """Degrees clockwise. PyAV shows the container's matrix on a decoded frame only."""
    if video.is_mp4:
        return 0 if video.moov is None else read_rotation(video.moov, video.stream.id)
    if "matroska" not in video.container.format.name or _PROJECTION not in read_bytes(video.file, 0, _TRACKS_WITHIN):
        return 0  # other containers have no place for it
    with open_video(video.file) as again:
        try:
            for packet in islice(again.container.demux(again.stream), _FIRST_PACKETS):
                for frame in packet.decode():
                    return round(-frame.rotation / 90) % 4 * 90  # FFmpeg counts the other way round
        except av.FFmpegError:
            pass  # damage is for the decoder to report
    return 0
