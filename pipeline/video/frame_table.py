"""Every frame of a video with its time and its place in the file, known before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np

from pipeline.video.file import ByteRange

_LARGEST_PTS = 1 << 60  # what lies beyond is no time: sums of two still fit into 64 bits
_STEPS_BACK = 16  # leading frames reach back one keyframe, nested open GOPs a few; past that, decode from the start


@dataclass(frozen=True, eq=False)
class Packets:
    """The m packets of a video stream in the order in which they lie in it: the decoder's order.

    `pts` int64 [m]; `is_key` bool [m]; `is_shown` bool [m]: whether a frame of its own comes out of it
    (none does of what an edit list cuts off). `size` int64 [m] in bytes, `offset` int64 [m] from the begin of
    the file, None where the container does not say. `stamp` int64 [m]: the time of decoding by which the demuxer's
    packets are told from each other where it does not know `pts`; None where it does. `header`: what a decoder
    has to be told first; only where a packet may hold a part of the next one's frame, and b"" elsewhere.
    """

    pts: np.ndarray
    is_key: np.ndarray
    is_shown: np.ndarray
    size: np.ndarray
    offset: np.ndarray | None = None
    stamp: np.ndarray | None = None
    header: bytes = b""

    def __len__(self) -> int:
        """m."""
        return len(self.pts)

    @cached_property
    def start(self) -> np.ndarray:
        """int64 [m]: the packet at which decoding has to begin for the frame of each packet; -1 where none does.

        That is the last keyframe before it in the stream that is not shown after it: a frame that leads its
        keyframe (an open GOP) may refer to the GOP before. A stream without keyframes begins at its first packet.
        """
        keys = np.flatnonzero(self.is_key)
        if len(keys) == 0:
            return np.zeros(len(self), np.int64)
        key_pts = self.pts[keys]
        place = np.searchsorted(keys, np.arange(len(self)), side="right") - 1
        for _ in range(_STEPS_BACK):
            leads = (place >= 0) & (key_pts[place] > self.pts)
            if not leads.any():
                break
            place[leads] -= 1
        else:
            leads = (place >= 0) & (key_pts[place] > self.pts)
            place[leads] = np.where(key_pts[0] <= self.pts[leads], 0, -1)
        return np.where(place >= 0, keys[place], -1)


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The n frames of a video stream in the order in which they are shown.

    `pts` int64 [n], strictly ascending, in units of `time_base` seconds; `origin` is the pts that counts as
    0 s: the begin of the container's first stream. `end_pts` is where the last frame ends.
    `is_key` bool [n]: frames at which decoding can begin. `decode_rank` int64 [n]: the place of a frame's packet
    among all packets of the stream. `offset` and `size` int64 [n]: its packet's bytes in the
    file, None where they are not known. `packets` are all of them, those that show nothing included; without
    it, the frames' own packets are taken for all there are.
    """

    pts: np.ndarray
    time_base: Fraction
    origin: int
    end_pts: int
    is_key: np.ndarray
    decode_rank: np.ndarray
    offset: np.ndarray | None = None
    size: np.ndarray | None = None
    packets: Packets | None = None

    @classmethod
    def from_packets(
        cls, packets: Packets, duration: np.ndarray, time_base: Fraction, origin: int | None
    ) -> FrameTable:
        """The frames that the packets of a stream show. `duration` int64 [m], 0 where unknown, in units of `time_base`.

        Left out is what no decoder gives back: packets without bytes or without a time that makes sense, the second
        frame of one time, and, where there are keyframes, all that comes before the first or leads it.
        Without an `origin`, or where frames are shown before it, the first frame is at 0 s.
        """
        is_time = (packets.pts > -_LARGEST_PTS) & (packets.pts < _LARGEST_PTS)
        seen = packets.is_shown & (packets.size > 0) & is_time & (packets.start >= 0)
        ranks = np.flatnonzero(seen)
        pts, first_of_its_time = np.unique(packets.pts[ranks], return_index=True)
        ranks = ranks[first_of_its_time]
        end = 0
        if len(pts):
            origin = int(pts[0]) if origin is None else min(origin, int(pts[0]))
            lasts = int(duration[ranks[-1]])
            if lasts <= 0:
                lasts = int(pts[-1] - pts[-2]) if len(pts) > 1 else 1
            end = int(pts[-1]) + min(lasts, _LARGEST_PTS)
        return cls(
            pts=pts,
            time_base=time_base,
            origin=origin or 0,
            end_pts=end,
            is_key=packets.is_key[ranks],
            decode_rank=ranks,
            offset=None if packets.offset is None else packets.offset[ranks],
            size=packets.size[ranks],
            packets=packets,
        )

    def __len__(self) -> int:
        """n."""
        return len(self.pts)

    @cached_property
    def times_s(self) -> np.ndarray:
        """float64 [n, 2]: when each frame appears, and when the next one takes its place, in seconds."""
        edges = np.append(self.pts, max(self.end_pts, int(self.pts[-1]) + 1) if len(self.pts) else [])
        seconds = ((edges - self.origin) * float(self.time_base)).round(9)
        return np.stack([seconds[:-1], seconds[1:]], axis=1)

    @cached_property
    def all_packets(self) -> Packets:
        """The packets of the stream, `decode_rank` counting them."""
        if self.packets is not None:
            return self.packets
        m = int(self.decode_rank.max()) + 1 if len(self) else 0
        pts, is_key, is_shown, size = np.zeros(m, np.int64), np.zeros(m, bool), np.zeros(m, bool), np.zeros(m, np.int64)
        pts[self.decode_rank], is_key[self.decode_rank], is_shown[self.decode_rank] = self.pts, self.is_key, True
        offset = None
        if self.offset is not None and self.size is not None:
            offset = np.zeros(m, np.int64)
            offset[self.decode_rank], size[self.decode_rank] = self.offset, self.size
        return Packets(pts, is_key, is_shown, size, offset)

    def first_packet(self, index: int) -> int:
        """The packet (a decode rank) at which decoding has to begin for frame `index`."""
        return max(int(self.all_packets.start[self.decode_rank[index]]), 0)

    def key_before(self, index: int) -> int:
        """The keyframe at which decoding has to begin for frame `index`: often an earlier one, or itself.

        -1 where decoding begins at a packet that no frame comes out of (an edit list hides it), or the stream has
        no keyframes: `first_packet` says at which.
        """
        rank = self.first_packet(index)
        return int(self._frame_of_rank[rank]) if self.all_packets.is_key[rank] else -1

    @cached_property
    def _frame_of_rank(self) -> np.ndarray:
        """int64 [m]: the frame that comes out of each packet; -1 where none does."""
        frame = np.full(len(self.all_packets), -1, np.int64)
        frame[self.decode_rank] = np.arange(len(self))
        return frame

    def byte_ranges(self, indices: Sequence[int] | np.ndarray) -> list[ByteRange]:
        """Where the bytes lie that decoding these frames reads: for each the packets from its keyframe to its own.

        Ascending, and touching ones made one. Empty where the container does not say where packets lie.
        """
        packets = self.all_packets
        if packets.offset is None or len(indices) == 0:
            return []
        lasts = self.decode_rank[np.asarray(indices, np.int64)]
        firsts = np.maximum(packets.start[lasts], 0)
        change = np.zeros(len(packets) + 1, np.int64)
        np.add.at(change, firsts, 1)
        np.add.at(change, lasts + 1, -1)
        needed = np.flatnonzero((np.cumsum(change[:-1]) > 0) & (packets.size > 0))
        needed = needed[np.argsort(packets.offset[needed], kind="stable")]
        begins, ends = packets.offset[needed], packets.offset[needed] + packets.size[needed]
        apart = np.flatnonzero(begins[1:] > np.maximum.accumulate(ends)[:-1]) + 1
        edges = [0, *apart.tolist(), len(needed)]
        return [(int(begins[a]), int(ends[a:b].max())) for a, b in pairwise(edges)]
