"""Where the bytes of a video come from, as the decoding process sees it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

ByteRange = tuple[int, int]
"""First byte, and the one behind the last."""


class VideoFile(Protocol):
    """A file that can be read at any place; what is not at hand is fetched."""

    size: int  # bytes
    path: Path | None  # where all of it lies on a local disk; None where only parts of it are at hand

    def open(self) -> str | BinaryIO:
        """What FFmpeg reads: the path, or a seekable binary file of its own position."""
        ...

    def will_read(self, ranges: Sequence[ByteRange]) -> None:
        """Say what is going to be read; it is fetched together, and is at hand when this returns."""
        ...


class LocalFile:
    """A regular file on a local disk."""

    def __init__(self, path: Path) -> None:
        """Raise OSError where there is no such file."""
        self.path = path
        self.size = path.stat().st_size

    def open(self) -> str:
        """The path."""
        return str(self.path)

    def will_read(self, ranges: Sequence[ByteRange]) -> None:
        """All of it is at hand."""
