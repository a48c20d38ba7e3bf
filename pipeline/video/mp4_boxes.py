"""The boxes that an MP4 or MOV file is made of (ISO 14496-12, 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.video.file import VideoFile

_HEADER = 16  # a size of 4 bytes, a type of 4, and 8 more where the size does not fit into 4
_LARGEST_INDEX = 256 << 20  # bytes: twenty times that of a day at 60 frames a second
_MOST_BOXES = 100_000  # a fragment a second, for a day


def read_index(file: VideoFile) -> memoryview | None:
    """What lies in the `moov` box of a file; None where it has none, or one cut short."""
    with _open(file) as source:
        for kind, start, end in _top_level(source, file.size):
            if kind == b"moov" and end <= file.size and end - start <= _LARGEST_INDEX:
                data = read_bytes(file, start, end - start)
                return memoryview(data) if len(data) == end - start else None
    return None


def is_cut_short(file: VideoFile) -> bool:
    """Whether an MP4 or MOV file ends inside one of its top-level boxes.

    False for every other format: only here does the file itself say how long it should be.
    """
    end = 0
    with _open(file) as source:
        for place, (kind, _, end) in enumerate(_top_level(source, file.size)):  # noqa: B007
            if place == 0 and kind != b"ftyp":
                return False
    return end > file.size or 0 < end < file.size < end + 8


def read_bytes(file: VideoFile, at: int, count: int) -> bytes:
    """Up to `count` bytes of a file from place `at` on."""
    with _open(file) as source:
        source.seek(at)
        return source.read(count)


def child(box: memoryview, *path: bytes) -> memoryview | None:
    """What lies in the first box of each name inside the one before, beginning in `box`; None where one is missing."""
    for name in path:
        found = next((inside for kind, inside in children(box) if kind == name), None)
        if found is None:
            return None
        box = found
    return box


def children(box: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The names and the contents of the boxes inside `box`, up to the first damage."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > len(box):
            return
        head, length = _measure(bytes(box[at : at + _HEADER]), len(box) - at)
        if length < head or at + length > len(box):
            return
        yield bytes(box[at + 4 : at + 8]), box[at + head : at + length]
        at += length


def _top_level(source: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin of the contents and end of each box, in bytes from the file's begin, up to the first damage."""
    at = 0
    for _ in range(_MOST_BOXES):
        source.seek(at)
        header = source.read(_HEADER) if at + 8 <= size else b""
        if len(header) < 8:
            return
        head, length = _measure(header, size - at)
        if length < head:
            return
        yield header[4:8], at + head, at + length
        at += length


def _measure(header: bytes, left: int) -> tuple[int, int]:
    """Bytes of a box's header, and of all of it; 0 in its place means that it takes all that is `left`."""
    length = int.from_bytes(header[:4], "big")
    if length == 1:
        return 16, int.from_bytes(header[8:16], "big")
    return 8, length or left


def _open(file: VideoFile) -> BinaryIO:
    source = file.open()
    return Path(source).open("rb") if isinstance(source, str) else source
