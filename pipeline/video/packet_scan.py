"""The frame table of an open video: out of the index of an MP4, out of the packets of anything else."""

from __future__ import annotations

from array import array
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np

from pipeline.errors import RowError
from pipeline.video.container import OpenVideo, open_video
from pipeline.video.display_order import PackedPictures, decoded_order
from pipeline.video.file import VideoFile
from pipeline.video.frame_table import FrameTable, Packets
from pipeline.video.h264_refresh import HEAD, begins_refresh, length_bytes
from pipeline.video.mp4 import SampleTable, read_samples
from pipeline.video.mp4_boxes import is_cut_short, read_bytes

_CHECKED = 64  # samples compared with FFmpeg's own index, and as many keyframes, spread evenly
_DEEPLY_REORDERED = {"h264", "hevc"}  # frames are held back by as many places as each stream likes
_NONE = -(1 << 63)  # a packet without a time


def read_frame_table(file: VideoFile) -> FrameTable:
    """The frames of a file's video stream. Raises RowError: those of `open_video` and of `frame_table_of`."""
    with open_video(file) as video:
        return frame_table_of(video)


def frame_table_of(video: OpenVideo) -> FrameTable:
    """The frames of an open video; what is read next from it stays what it was.

    Raises RowError decode/no_frames, or decode/truncated where an MP4 without frames ends before it says it does.
    """
    table = from_index(video) or from_packets(video)
    if len(table) == 0:
        code = "truncated" if is_cut_short(video.file) else "no_frames"
        raise RowError("decode", code, "no frame of the video stream can be decoded")
    return table


def from_index(video: OpenVideo) -> FrameTable | None:
    """The frames that an MP4's index lists; None where it does not list them, or FFmpeg reads it in another way."""
    samples = read_samples(video.moov, video.stream.id) if video.moov is not None else None
    if samples is None or len(samples.size) == 0 or video.stream.time_base != Fraction(1, samples.timescale):
        return None
    if _codec(video) == "mpeg4" and _is_packed(
        video, read_bytes(video.file, int(samples.offset[0]), min(HEAD, int(samples.size[0])))
    ):
        return None  # copied out of an AVI as it was: the index does not tell when frames are shown
    return _as_ffmpeg_has_it(video, samples)


def _as_ffmpeg_has_it(video: OpenVideo, samples: SampleTable) -> FrameTable | None:
    """The samples on FFmpeg's clock; None where its index holds others.

    Out of an edit list FFmpeg makes a shorter index: one stretch of all samples, from the keyframe before the
    shown part on, its clock moved so that the shown part begins where the edit list wants it.
    """
    index = video.stream.index_entries
    if not 0 < len(index) <= len(samples.size):
        return None
    firsts = np.flatnonzero((samples.offset == index[0].pos) & (samples.size == index[0].size))
    if len(firsts) == 0 or firsts[0] + len(index) > len(samples.size):
        return None
    part = slice(int(firsts[0]), int(firsts[0]) + len(index))
    dts, pts, size, offset = samples.dts[part], samples.pts[part], samples.size[part], samples.offset[part]
    is_key = samples.is_key[part]
    is_shown = pts >= samples.shown_from
    if samples.shown_until is not None:
        is_shown &= pts < samples.shown_until
    if not is_shown.any():
        return None
    first_shown = int(is_shown.argmax())
    move = index[first_shown].timestamp - int(dts[first_shown]) + samples.reorder
    for i in _places_to_check(is_key):
        entry = index[i]
        same = (entry.pos, entry.size, entry.is_keyframe) == (offset[i], size[i], is_key[i])
        if not same or entry.is_discard == is_shown[i]:
            return None
        if i >= first_shown and entry.timestamp != dts[i] - samples.reorder + move:
            return None
    keys = np.flatnonzero(is_key)
    if len(keys) > 1 and _is_refresh(
        video, read_bytes(video.file, int(offset[keys[1]]), min(HEAD, int(size[keys[1]])))
    ):
        is_key = _only_first(is_key)
    packets = Packets(pts + move, is_key, is_shown, size, offset)
    return FrameTable.from_packets(packets, samples.duration[part], Fraction(1, samples.timescale), _origin(video))


def _places_to_check(is_key: np.ndarray) -> list[int]:
    keys = np.flatnonzero(is_key)
    spread = np.linspace(0, len(is_key) - 1, _CHECKED).astype(int)
    some_keys = keys[np.linspace(0, len(keys) - 1, min(_CHECKED, len(keys))).astype(int)]
    return np.unique(np.concatenate([spread, some_keys])).tolist()


def from_packets(video: OpenVideo) -> FrameTable:
    """The frames of a video whose packets are read one after the other, and not decoded: the whole file is read."""
    if video.file.path is None:
        video.file.will_read([(0, video.file.size)])
    pts, dts, duration, size, flags = (array("q") for _ in range(5))
    keys, refreshes = 0, False
    packed: PackedPictures | None = None
    with open_video(video.file) as again:
        shows = _shows_vp8 if again.stream.codec_context.name == "vp8" else _shows_any
        try:
            for packet in again.container.demux(again.stream):
                if packet.size == 0:
                    continue
                pts.append(_NONE if packet.pts is None else packet.pts)
                dts.append(_NONE if packet.dts is None else packet.dts)
                duration.append(packet.duration or 0)
                size.append(packet.size)
                keys += packet.is_keyframe
                if keys == 2 and packet.is_keyframe:
                    refreshes = _is_refresh(again, bytes(memoryview(packet)[:HEAD]))
                is_key = packet.is_keyframe
                if len(size) == 1 and _is_packed(again, bytes(packet)):
                    packed = PackedPictures(again.stream.codec_context.extradata, bytes(packet))
                if packed is not None:
                    is_key = packed.add(bytes(packet))
                flags.append(is_key + 2 * (shows(packet) and not packet.is_discard))
        except av.FFmpegError:
            pass  # damage or a missing end: the frames up to there are those that the file has
        marks = np.frombuffer(flags, np.int64)
        is_key = (marks & 1).astype(bool)
        told = np.frombuffer(pts, np.int64), np.frombuffer(dts, np.int64)
        packets = Packets(
            pts=_times(*told, again),
            is_key=_only_first(is_key) if refreshes else is_key,
            is_shown=(marks & 2).astype(bool),
            size=np.frombuffer(size, np.int64),
        )
        if packed is not None:
            packets = replace(_reordered(packets, packed.order(), told[1]), header=packed.header)
        elif _hides_order(again, told[0]):
            packets = _reordered(packets, decoded_order(video.file), told[1])
        elif _guesses_times(again):
            packets = replace(packets, stamp=told[1])
        return FrameTable.from_packets(packets, np.frombuffer(duration, np.int64), _time_base(again), _origin(again))


def _is_packed(video: OpenVideo, first_packet: bytes) -> bool:
    return _codec(video) == "mpeg4" and PackedPictures.are_in(video.stream.codec_context.extradata, first_packet)


def _hides_order(video: OpenVideo, pts: np.ndarray) -> bool:
    """Whether frames are shown in another order than decoded, and their times do not tell in which."""
    if not video.stream.codec_context.has_b_frames or _codec(video) not in _DEEPLY_REORDERED:
        return False
    return _guesses_times(video) or not (pts != _NONE).any()


def _guesses_times(video: OpenVideo) -> bool:
    """Whether times of display are FFmpeg's guess. An AVI has times of decoding alone.

    For older codecs, in which a frame is held back by one place at most, the guess is right.
    """
    return video.container.format.name == "avi" and _codec(video) in _DEEPLY_REORDERED


def _codec(video: OpenVideo) -> str:
    return video.stream.codec_context.codec.canonical_name


def _reordered(packets: Packets, order: np.ndarray, dts: np.ndarray) -> Packets:
    """The packets with their times dealt out anew: the first of them to the packet that is shown first, and so on.

    Those that show nothing are left without a time, or what comes of them could be taken for another's frame.
    """
    order = order[order < len(packets)]
    order = order[packets.is_shown[order] & (packets.pts[order] != _NONE)]
    pts, is_shown = np.full(len(packets), _NONE), np.zeros(len(packets), bool)
    pts[order], is_shown[order] = np.sort(packets.pts[order]), True
    return replace(packets, pts=pts, is_key=packets.is_key & is_shown, is_shown=is_shown, stamp=dts)


def _is_refresh(video: OpenVideo, second_key: bytes) -> bool:
    """Whether a stream is refreshed gradually, going by its second keyframe: encoders do it always or never."""
    extradata = video.stream.codec_context.extradata
    return _codec(video) == "h264" and begins_refresh(second_key, length_bytes(extradata))


def _only_first(is_key: np.ndarray) -> np.ndarray:
    first = np.zeros_like(is_key)
    first[is_key.argmax()] = True
    return first


def _times(pts: np.ndarray, dts: np.ndarray, video: OpenVideo) -> np.ndarray:
    """When the frame of each packet is shown. A container that never says it shows them in the order of decoding."""
    if len(pts) == 0 or ((pts != _NONE).any() and not _guesses_times(video)):
        return pts  # a packet without a time among others with one holds a second field, or nothing
    if (dts != _NONE).all():
        return dts
    rate = video.stream.average_rate or video.stream.guessed_rate or Fraction(25)
    return np.arange(len(pts)) * max(1, round(1 / (rate * _time_base(video))))


def _shows_any(packet: av.Packet) -> bool:
    return True


def _shows_vp8(packet: av.Packet) -> bool:
    return bool(memoryview(packet)[0] & 0x10)  # a frame kept for reference only (RFC 6386, 9.1)


def _time_base(video: OpenVideo) -> Fraction:
    return video.stream.time_base or Fraction(1, av.time_base)


def _origin(video: OpenVideo) -> int | None:
    """The begin of the container's first stream, in units of the video stream's time base."""
    start, own = video.container.start_time, video.stream.start_time
    if start is None or abs(start) > 1 << 60:
        return None
    time_base = _time_base(video)
    # The container's is rounded to a microsecond: where it is this stream's, take that.
    if own is not None and abs(own * time_base * av.time_base - start) <= 1:
        return own
    return round(Fraction(start, av.time_base) / time_base)
