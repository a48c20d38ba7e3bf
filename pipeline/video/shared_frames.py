"""Frames in memory that two processes share: written by the one that decodes, mapped by the one that asked.

The memory has no name: it is gone when the last process that maps it is, however that ends. It serves for
video after video, because the kernel takes longer to hand out pages of it than a processor to fill them.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import weakref

import numpy as np

Shape = tuple[int, int, int, int]  # frames, height, width, 3

_MOST_KEPT = 256 << 20  # bytes that a process keeps for its next video
_SLACK = (
    4  # times what is wanted: memory that is larger than this is given back, or one large video would hold it for all
)


class SharedFrames:
    """Where a decoding process puts the frames of its videos."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes` is the largest array there may be."""
        self._most_bytes = most_bytes
        self._fd: int | None = None
        self._memory: mmap.mmap | None = None
        self._address = 0
        self._free = False

    def begin(self, free: bool) -> None:
        """Another video. `free`: nobody looks at the frames of the last one any more."""
        self._free = free and self._memory is not None and len(self._memory) <= _MOST_KEPT

    def allocate(self, shape: Shape) -> np.ndarray:
        """A uint8 array in shared memory, of any content. Raises MemoryError."""
        size = math.prod(shape)
        if size > self._most_bytes:
            raise MemoryError(f"{shape[0]} frames of {shape[1]}x{shape[2]} pixels")
        if not (self._free and self._memory is not None and size <= len(self._memory) <= _SLACK * size):
            self.close()
            self._fd = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
        self._free = False
        frames = np.frombuffer(self._memory, np.uint8, size).reshape(shape)
        self._address = frames.ctypes.data
        return frames

    def locate(self, frames: np.ndarray) -> tuple[int, int]:
        """The file that holds `frames`, which stays this object's, and their first byte in it.

        Frames that are elsewhere, or are not one block of memory, are copied into a new one.
        """
        offset = frames.ctypes.data - self._address
        inside = self._memory is not None and 0 <= offset <= len(self._memory) - frames.nbytes
        if not inside or not frames.flags.c_contiguous:
            offset = 0
            self.allocate(frames.shape)[...] = frames
        assert self._fd is not None  # noqa: S101 - `allocate` has set it
        return self._fd, offset

    def close(self) -> None:
        """Let go of the memory; who maps it keeps it."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._memory = None


class MappedFrames:
    """The frames of one decoding process, as the process that asked for them sees them."""

    def __init__(self) -> None:
        """Nothing is mapped yet."""
        self._latest: weakref.ref[mmap.mmap] | None = None

    def map(self, fd: int, offset: int, shape: Shape) -> np.ndarray:
        """The array [T, H, W, 3] at `offset` of the other process's memory, not copied; `fd` stays open.

        Raises ValueError where the file does not hold it, or is no such memory.
        """
        try:
            # Nobody may shorten it from now on: reading behind its end would kill this process.
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        except OSError as error:
            raise ValueError("a file that is no shared memory") from error
        size = math.prod(shape)
        if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or not 0 <= offset <= os.fstat(fd).st_size - size:
            raise ValueError(f"frames of the shape {shape} that are not there")
        memory = mmap.mmap(fd, offset + size)
        self._latest = weakref.ref(memory)
        return np.frombuffer(memory, np.uint8, size, offset).reshape(shape)

    @property
    def in_use(self) -> bool:
        """Whether the latest array, or anything that was made of it without a copy, is still there."""
        return self._latest is not None and self._latest() is not None
