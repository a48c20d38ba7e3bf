"""Walk the packets of a video stream from any one on, in the order in which they lie in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import av
import numpy as np

from pipeline.errors import RowError
from pipeline.video.container import OpenVideo, open_video
from pipeline.video.frame_table import FrameTable

_MARGINS_S = (0, 1, 4, 16)  # how much earlier than asked to seek where a seek landed too late
_LARGEST_PTS = 1 << 60  # what lies beyond is no time


class PacketWalk:
    """An open video stream, its decoder on one thread, and the place in the stream that is read next.

    A packet is called by its rank: its place among all packets of the stream, as in `FrameTable.decode_rank`.
    """

    def __init__(self, video: OpenVideo, table: FrameTable, options: Mapping[str, str]) -> None:
        """Begin with `video`, of which nothing may have been decoded; `options` are the decoder's."""
        self._file = video.file
        self._options = dict(options)
        self._pts = table.all_packets.pts
        self._has_stamps = table.all_packets.stamp is not None
        self._stamp = self._pts if table.all_packets.stamp is None else table.all_packets.stamp
        self._header = table.all_packets.header
        self._by_stamp = np.argsort(self._stamp, kind="stable")
        self._time_base = table.time_base
        self._margin = 0  # place in _MARGINS_S: what the last seek needed; behind its end, seeking is of no use
        self._held = ExitStack()
        self._begin(video)

    def _reopen(self) -> None:
        self._held.close()
        self._begin(self._held.enter_context(open_video(self._file)))

    def _begin(self, video: OpenVideo) -> None:
        self._container, self._stream = video.container, video.stream
        # One thread: the pool has one decoder a core, and threads would also hold frames back.
        self._stream.thread_type = "NONE"
        self._stream.thread_count = 1
        self.context = self._stream.codec_context
        self.context.options = self._options
        if self._header:
            self.context.extradata = self._header
        self._packets = self._container.demux(self._stream)
        self._next: int | None = 0  # the rank of the packet that is read next; None after a seek

    def __enter__(self) -> Self:
        """The walk itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close what was opened here."""
        self._held.close()

    def packets_from(self, rank: int) -> Iterator[tuple[int | None, av.Packet]]:
        """The packets from that of `rank` on, each with its rank, None where it is not known.

        Raises RowError decode/decode_failed where the packet is not found.
        """
        yield rank, self._find(rank)
        yield from self._read()

    def _find(self, rank: int) -> av.Packet:
        can_seek = self._margin < len(_MARGINS_S) and abs(int(self._stamp[rank])) < _LARGEST_PTS
        if self._next is not None and (rank == self._next or (rank > self._next and not can_seek)):
            packet = self._skip_to(rank)
            if packet is not None:
                return packet
        while can_seek and self._margin < len(_MARGINS_S):
            packet = self._skip_to(rank) if self._seek(int(self._stamp[rank]), _MARGINS_S[self._margin]) else None
            if packet is not None:
                return packet
            self._margin += 1
        self._reopen()
        packet = self._skip_to(rank)
        if packet is None:
            raise RowError("decode", "decode_failed", f"packet {rank} of the video stream cannot be read")
        return packet

    def _seek(self, stamp: int, margin_s: int) -> bool:
        """Go to the keyframe at or before `stamp`, as well as the container can; False where it cannot."""
        try:
            self._container.seek(stamp - round(margin_s / self._time_base), stream=self._stream)
        except av.FFmpegError:
            return False
        self._packets = self._container.demux(self._stream)
        self._next = None
        return True

    def _skip_to(self, rank: int) -> av.Packet | None:
        """The packet of `rank`, if it is still to come."""
        for found, packet in self._read():
            if found == rank:
                return packet
            if found is not None and found > rank:
                return None
        return None

    def _read(self) -> Iterator[tuple[int | None, av.Packet]]:
        """What is left of the stream, as far as it can be read."""
        try:
            for packet in self._packets:
                if packet.size == 0:  # to a decoder it would mean the end
                    continue
                rank = self._rank_of(packet)
                if rank is not None:
                    self._next = rank + 1
                    # A container that does not say times of display: its table has found them out, or made some up.
                    if packet.pts is None or self._has_stamps:
                        packet.pts = int(self._pts[rank]) if abs(int(self._pts[rank])) < _LARGEST_PTS else None
                yield rank, packet
        except MemoryError:
            raise
        except av.FFmpegError:
            return  # damage or a missing end: what lies behind it is missing, and the caller finds that out

    def _rank_of(self, packet: av.Packet) -> int | None:
        expected = self._next if self._next is not None and self._next < len(self._pts) else None
        stamp = packet.dts if self._has_stamps else packet.pts
        if stamp is None or (expected is not None and stamp == self._stamp[expected]):
            return expected
        place = int(self._stamp.searchsorted(stamp, sorter=self._by_stamp))
        if place == len(self._stamp) or self._stamp[self._by_stamp[place]] != stamp:
            return None
        return int(self._by_stamp[place])
