"""Sets of byte ranges: which parts of a file are wanted, and which are at hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pipeline.video.file import ByteRange


def merged(ranges: Iterable[Sequence[int]], gap: int = 0) -> list[ByteRange]:
    """The same bytes as sorted ranges that do not touch; those at most `gap` bytes apart become one."""
    joined: list[ByteRange] = []
    for begin, end in sorted((int(begin), int(end)) for begin, end in ranges if end > begin):
        if joined and begin <= joined[-1][1] + gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def without(ranges: Sequence[ByteRange], others: Sequence[ByteRange]) -> list[ByteRange]:
    """The bytes of `ranges` that `others` lack; both as `merged` returns them."""
    left: list[ByteRange] = []
    place = 0
    for begin, end in ranges:
        while place < len(others) and others[place][1] <= begin:
            place += 1
        for other_begin, other_end in others[place:]:
            if other_begin >= end:
                break
            if begin < other_begin:
                left.append((begin, other_begin))
            begin = max(begin, other_end)
        if begin < end:
            left.append((begin, end))
    return left


def clipped(ranges: Iterable[Sequence[int]], size: int) -> list[ByteRange]:
    """The bytes of `ranges` that lie in a file of `size` bytes, as `merged` returns them."""
    return merged((max(0, begin), min(size, end)) for begin, end in ranges)


def byte_count(ranges: Iterable[ByteRange]) -> int:
    """How many bytes ranges hold that do not overlap."""
    return sum(end - begin for begin, end in ranges)
