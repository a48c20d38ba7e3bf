"""A file of which only some parts are at hand, as the decoding process sees it.

The process that fetches holds the same open file and writes into it; here it is only read, by
`os.pread`, which needs no position of its own. What is missing is asked for.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.video.byte_ranges import clipped, merged, without
from pipeline.video.file import ByteRange

Need = Callable[[list[ByteRange]], list[list[int]] | list[ByteRange]]
"""Asks for ranges, and returns all that is at hand when they are: it blocks, and may raise RowError."""

_READ_AHEAD = 64 * 1024  # bytes; doubled while reads follow one another, as those of a header do
_MAX_READ_AHEAD = 2 * 1024 * 1024


class SparseFile:
    """A `VideoFile` over a descriptor of the full size, in which the bytes of `present` are real."""

    def __init__(self, fd: int, size: int, present: Sequence[Sequence[int]], need: Need) -> None:
        """`fd` stays the caller's to close, `size` is in bytes, `need` gets what is missing."""
        self.size = size
        self._fd = fd
        self._present = merged(present)
        self._need = need
        self._read_ahead = _READ_AHEAD
        self._fetched_to = -1  # where the last fetch for a read ended
        self._announced = False

    @property
    def path(self) -> Path | None:
        """A path that decoders can open once all of the file is at hand; None before."""
        return Path(f"/proc/self/fd/{self._fd}") if self._has(0, self.size) else None

    def open(self) -> str | BinaryIO:
        """The path where there is one, else a binary file with a position of its own."""
        return str(self.path) if self.path else cast(BinaryIO, SparseReader(self))

    def will_read(self, ranges: Sequence[ByteRange]) -> None:
        """Have these bytes fetched together. From now on reads end where that which is at hand ends."""
        missing = without(clipped(ranges, self.size), self._present)
        if missing:
            self._present = merged(self._need(missing))
        self._announced = True

    def read_at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes from `position`; fewer at the end of the file.

        FFmpeg fills whole buffers and so asks for more than the packet that it wants. After `will_read`
        that surplus is not worth a request: a read is cut short instead, which FFmpeg takes well.
        """
        end = min(position + count, self.size)
        if position >= end:
            return b""
        if not self._has(position, end):
            end = self._at_hand_until(position, end)
        data = os.pread(self._fd, end - position, position)
        if not data:  # the bookkeeping says that the bytes are there
            raise OSError("the fetched part of the file is gone")
        return data

    def _at_hand_until(self, position: int, end: int) -> int:
        at_hand = next((stop for start, stop in self._present if start <= position < stop), position)
        if self._announced and at_hand > position:
            return min(at_hand, end)
        self._read_ahead = min(2 * self._read_ahead, _MAX_READ_AHEAD) if at_hand == self._fetched_to else _READ_AHEAD
        wanted = (at_hand, min(max(end, at_hand + self._read_ahead), self.size))
        self._present = merged(self._need(without([wanted], self._present)))
        self._fetched_to = wanted[1]
        return end

    def _has(self, begin: int, end: int) -> bool:
        return not without(clipped([(begin, end)], self.size), self._present)


class SparseReader(io.RawIOBase):
    """A read-only binary file over a SparseFile, with a position of its own."""

    def __init__(self, file: SparseFile) -> None:
        """Begin at the first byte."""
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def seekable(self) -> bool:
        """Any place can be read."""
        return True

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, also behind the end; ValueError before the first byte or for an unknown `whence`."""
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}
        if whence not in bases or bases[whence] + offset < 0:
            raise ValueError(f"cannot seek to {offset} (whence {whence})")
        self._position = bases[whence] + offset
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        """As `SparseFile.read_at`, from the position on; all the rest without a `count`."""
        if count is None or count < 0:
            return self.readall()
        data = self._file.read_at(self._position, count)
        self._position += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """The same into `buffer`; returns how many bytes."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
