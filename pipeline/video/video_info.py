"""What is known of a video before a frame of it is decoded. Plain data: importing this loads no decoder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoInfo:
    """Facts that stand in a result row; what the container does not say is None.

    `duration_s` in seconds, `fps` the average rate, `width` x `height` in pixels as shown: turned
    upright, and with square pixels.
    """

    duration_s: float | None
    fps: float | None
    width: int
    height: int
    codec: str


@dataclass(frozen=True)
class VideoStream:
    """The video stream of a file: its `info`, and what a decoder has to know besides.

    `index` is its place among all streams of the container. `coded_width` x `coded_height` are the
    pixels that the decoder gives; `rotation` is how far to turn them clockwise to show them upright (0, 90,
    180 or 270 degrees); `pixel_aspect` is the width of a coded pixel over its height. `pixel_format`
    is FFmpeg's name, None where the header does not tell.
    """

    info: VideoInfo
    index: int
    coded_width: int
    coded_height: int
    rotation: int = 0
    pixel_aspect: float = 1.0
    pixel_format: str | None = None


def shown_size(width: int, height: int, rotation: int, pixel_aspect: float) -> tuple[int, int]:
    """Width and height as shown of `width` x `height` coded pixels.

    Wide pixels make the picture wider, tall ones taller, so that no line of it is lost.
    """
    if pixel_aspect >= 1:
        width = round(width * pixel_aspect)
    else:
        height = round(height / pixel_aspect)
    return (height, width) if rotation in (90, 270) else (width, height)
