"""In which order the packets of a stream are shown, where its container does not tell when.

Most containers give each packet a time of display. AVI gives a time of decoding at most, and bare streams give none:
where frames are reordered, only the coded pictures themselves say which one comes next.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator

import av
import numpy as np

from pipeline.video.container import open_video
from pipeline.video.file import VideoFile

_DIVX_PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+[bB]\d+p")  # what the encoder says of itself in user data
_PICTURE = b"\x00\x00\x01\xb6"
_I, _B = 0, 2  # kinds of pictures: the two bits behind that start code (ISO 14496-2, 6.3.5)
_SEQUENCE = b"\x00\x00\x01\xb0"
# FFmpeg's bounds too: of a placeholder, and of a picture that it does not look at where it has kept another
_MOST_PLACEHOLDER_BYTES, _EMPTY_PICTURE_BYTES = 19, 7


def decoded_order(file: VideoFile) -> np.ndarray:
    """The ranks of the packets out of which a frame comes, int64, in the order in which these are shown.

    It decodes the whole stream, roughly: H.264 and HEVC say it nowhere that can be had for less.
    """
    order = array("q")
    with open_video(file) as video:
        video.stream.thread_type = "NONE"
        context = video.stream.codec_context
        context.options = {"skip_loop_filter": "all", "skip_idct": "all"}  # nobody looks at the pictures
        for packet in _ranked(video.container.demux(video.stream)):
            try:
                order.extend(frame.pts for frame in context.decode(packet) if frame.pts is not None)
            except MemoryError:
                raise
            except av.FFmpegError:
                continue  # a damaged packet shows nothing
    return _first_of_each(order)


def _first_of_each(order: array[int]) -> np.ndarray:
    """Of a packet that holds two fields both come out under its rank."""
    ranks, firsts = np.unique(np.frombuffer(order, np.int64), return_index=True)
    return ranks[np.argsort(firsts)]


def _ranked(packets: Iterator[av.Packet]) -> Iterator[av.Packet | None]:
    """Each packet with its rank for a time, and the None that makes a decoder hand out what it holds back."""
    rank = 0
    try:
        for packet in packets:
            if packet.size:
                packet.pts = packet.dts = rank
                rank += 1
                yield packet
    except av.FFmpegError:
        pass  # damage or a missing end: what was read up to there counts
    yield None


class PackedPictures:
    """MPEG-4 of the DivX kind, for containers that cannot reorder: a B-frame lies in the packet of the frame before.

    Those behind it move up by one packet, until one that holds only a placeholder. Packets and frames are as
    many as ever, but the times that FFmpeg derives from the packets, and its marks of keyframes, are not the frames'.
    """

    def __init__(self, extradata: bytes | None, first_packet: bytes) -> None:
        """No packet is added yet, not even the first."""
        self.header = (extradata or b"") + first_packet.partition(_PICTURE)[0]
        """What says that the stream is of this kind, often only once: a decoder has to see it."""
        self._kinds = array("q")  # of the frame that comes out of each packet; -1: none does
        self._kept = -1  # the kind of the picture that is kept for the next packet

    @staticmethod
    def are_in(extradata: bytes | None, first_packet: bytes) -> bool:
        """Whether a stream is of this kind."""
        return any(_DIVX_PACKED.search(data) for data in (extradata or b"", first_packet))

    def add(self, packet: bytes) -> bool:
        """The next packet; returns whether decoding can begin at it."""
        kinds = [packet[at] >> 6 for at in _behind_all(_PICTURE, packet) if at < len(packet)]
        first_code = packet.find(b"\x00\x00\x01")
        if packet[first_code : first_code + len(_SEQUENCE)] == _SEQUENCE:
            self._kept = -1  # a new sequence: FFmpeg throws away what it has kept
        begins_here = self._kept < 0
        if begins_here and len(packet) <= _MOST_PLACEHOLDER_BYTES and kinds[:1] != [_B]:
            kinds = []
        if not begins_here:
            kinds = [self._kept, *(kinds[:1] if len(packet) > _EMPTY_PICTURE_BYTES else [])]
        kind, kept = [*kinds, -1, -1][:2]
        self._kept = kept if kept in (_I, _B) else -1
        self._kinds.append(kind)
        return begins_here and kind == _I

    def order(self) -> np.ndarray:
        """The ranks of the packets out of which a frame comes, int64, in the order in which these are shown.

        A B-frame is shown at once, any other when the next such one has come.
        """
        shown = array("q")
        waiting: list[int] = []
        for rank, kind in enumerate(self._kinds):
            if kind == _B:
                shown.append(rank)
            elif kind >= 0:
                shown.extend(waiting)
                waiting = [rank]
        shown.extend(waiting)
        return np.frombuffer(shown, np.int64)


def _behind_all(mark: bytes, data: bytes) -> Iterable[int]:
    at = data.find(mark)
    while at >= 0:
        yield at + len(mark)
        at = data.find(mark, at + len(mark))
