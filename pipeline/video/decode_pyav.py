"""Chosen frames through PyAV, which is to say through a current FFmpeg, decoding as little as the codec allows.

Decoding begins at the keyframe before a wanted frame and ends with the packet that holds it: then the decoder
is drained, so that the frames which it holds back for reordering come out without feeding it others. On the way,
frames that no other frame is predicted from are left out. Pixels are those of a plain sequential decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import av
import numpy as np

from pipeline.errors import RowError
from pipeline.video.container import OpenVideo, open_video
from pipeline.video.file import VideoFile
from pipeline.video.frame_table import FrameTable
from pipeline.video.packet_walk import PacketWalk

# Codecs whose FFmpeg decoder can be told packet by packet to leave out a frame that nobody refers to.
_SKIPPING_CODECS = {"h264", "hevc", "mpeg4", "mpeg2video"}
_VPS_HEADER = b"\x40\x01"  # the two bytes before an HEVC video parameter set (ITU-T H.265, 7.3.1.2)
_LATE_PACKETS = 64  # how far past its own packet a frame may come out that went missing in the first try

Convert = Callable[[av.VideoFrame], np.ndarray]


def read_frames(
    video: OpenVideo, table: FrameTable, indices: Sequence[int] | np.ndarray, rotation: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Each frame of `indices` (ascending) with its index, in the order in which they come out.

    uint8 RGB [H, W, 3], turned clockwise by `rotation` = 0, 90, 180 or 270 degrees; a view. H and W may change
    on the way where the stream's size does. Raises RowError decode/decode_failed where a frame does not come
    or comes damaged.
    """
    for index, frame in _read(video, table, indices, _as_rgb, {}):
        yield index, np.rot90(frame, k=-(rotation // 90))


def read_thumbnails(
    file: VideoFile, table: FrameTable, indices: Sequence[int] | np.ndarray, height: int, width: int
) -> Iterator[np.ndarray]:
    """The frames of `indices` (ascending), not turned, scaled roughly to uint8 RGB [height, width, 3], in order.

    For looking at many frames at little cost: blocks are not smoothed, so that pixels are near the true ones only.
    """

    def shrink(frame: av.VideoFrame) -> np.ndarray:
        return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA", threads=1)

    with open_video(file) as video:
        pictures = dict(_read(video, table, indices, shrink, {"skip_loop_filter": "all"}))
    return (pictures[int(index)] for index in indices)


def _as_rgb(frame: av.VideoFrame) -> np.ndarray:
    return frame.to_ndarray(format="rgb24", threads=1)


def _read(
    video: OpenVideo, table: FrameTable, indices: Sequence[int] | np.ndarray, convert: Convert, options: dict[str, str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Decode `indices` with the decoder's `options`; each goes through `convert` before the next one is decoded."""
    try:
        with PacketWalk(video, table, options) as walk:
            for start, wanted in _runs(table, indices):
                for index, frame in _decode_run(walk, table, start, wanted):
                    yield index, convert(frame)
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:  # ValueError: a pixel format that has no way to RGB
        reason = getattr(error, "strerror", None) or str(error)
        raise RowError("decode", "decode_failed", f"FFmpeg gave up: {reason}") from error


def _runs(table: FrameTable, indices: Sequence[int] | np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """The wanted frames for which decoding has to begin at the same packet, with that packet's rank."""
    return ((start, list(run)) for start, run in groupby(map(int, indices), key=table.first_packet))


def _decode_run(
    walk: PacketWalk, table: FrameTable, start: int, wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from the packet `start` on until each of `wanted` is there, in the cheap way and else in the plain one."""
    missing = set(wanted)
    skip = can_skip(walk.context) and not table.all_packets.header
    yield from _decode(walk, table, start, missing, 0, skip)
    if missing:
        # A stream whose header hides how far frames are reordered, or a keyframe that does not stand for itself.
        earlier = max(int(table.all_packets.start[max(start - 1, 0)]), 0)
        yield from _decode(walk, table, earlier, missing, _LATE_PACKETS, False)
    if missing:
        at_s = table.times_s[min(missing), 0]
        raise RowError("decode", "decode_failed", f"the frame at {at_s:.3f} s is missing or damaged")


def _decode(
    walk: PacketWalk, table: FrameTable, start: int, missing: set[int], further: int, skip: bool
) -> Iterator[tuple[int, av.VideoFrame]]:
    """What comes out undamaged of `missing` between `start` and the last packet needed; `missing` keeps the rest."""
    context = walk.context
    context.flush_buffers()
    wanted = {int(table.decode_rank[index]) for index in missing}
    last = max(wanted) + further
    for rank, packet in walk.packets_from(start):
        context.skip_frame = "NONREF" if skip and rank not in wanted else "DEFAULT"
        yield from _found(table, _send(context, packet), missing)
        if not missing or (rank is not None and rank >= last):
            break
    if missing:
        yield from _found(table, _send(context, None), missing)


def _send(context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return context.decode(packet)
    except MemoryError:
        raise
    except av.FFmpegError:
        return []  # a damaged packet matters to the frames that need it, and those will be missing


def _found(table: FrameTable, frames: list[av.VideoFrame], missing: set[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            continue
        index = int(table.pts.searchsorted(frame.pts))
        if index in missing and table.pts[index] == frame.pts:
            missing.discard(index)
            yield index, frame


def can_skip(context: av.VideoCodecContext) -> bool:
    """Whether frames that are marked as not referred to can be left out without changing any other frame."""
    if context.codec.canonical_name != "hevc":
        return context.codec.canonical_name in _SKIPPING_CODECS
    # In HEVC such a frame may still be referred to from a higher temporal sub-layer (ITU-T H.265, 3.160):
    # the video parameter set says in three bits how many there are beyond the first.
    extradata = context.extradata or b""
    at = extradata.find(_VPS_HEADER)
    return 0 <= at < len(extradata) - 3 and (extradata[at + 3] >> 1) & 7 == 0
