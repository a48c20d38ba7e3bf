"""A decoding process whose decoder does what decoders do on bad days; the name of the video says what.

The real program runs, with another `decode_frames` below it. A video of any other name is decoded.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from pipeline.errors import RowError
from pipeline.video import child, decode
from pipeline.video.decode import DecodedVideo
from pipeline.video.video_info import VideoInfo

PIXELS = (2, 4, 6, 3)  # of the video that the harmless kinds give
really_decode = decode.decode_frames
leaked: list[bytearray] = []
libc = ctypes.PyDLL(None)  # keeps Python's lock during a call: no other thread of Python runs meanwhile


def wait_for_ever() -> None:
    while True:
        libc.pause()


def crash() -> None:
    ctypes.string_at(0)  # reads from address 0


def eat_memory() -> None:
    while True:
        leaked.append(bytearray(8 << 20))


def eat_memory_until_abort() -> None:
    libc.malloc.restype = ctypes.c_void_p
    while address := libc.malloc(ctypes.c_size_t(8 << 20)):
        ctypes.memset(address, 1, 8 << 20)
    time.sleep(0.3)  # as long as it takes to be seen
    os.abort()


def eat_shared_memory() -> None:
    while True:
        leaked.append(mmap.mmap(-1, 8 << 20))
        leaked[-1].write(b"x" * (8 << 20))
        time.sleep(0.001)


def leak() -> None:
    leaked.append(bytearray(os.urandom(1) * (32 << 20)))


def flood() -> None:
    for stream in (1, 2):
        os.write(stream, b"error: bad macroblock\n" * 500_000)


def write_to_the_reader(data: bytes) -> Callable[[], None]:
    def action() -> None:
        os.write(int(sys.argv[1]), data)
        wait_for_ever()

    return action


def exhaust_ffmpeg() -> None:
    import av

    error = av.error.MemoryError(12, "Cannot allocate memory")
    raise RowError("decode", "decode_failed", "the decoder gave up") from error


def fail() -> None:
    raise RowError("decode", "truncated", "it ends too early")


def mistake() -> None:
    raise KeyError("a mistake of ours")


def nothing() -> None:
    pass


ACTIONS = {
    "hang": wait_for_ever,
    "crash": crash,
    "exit": lambda: os._exit(3),
    "memory": eat_memory,
    "memory-abort": eat_memory_until_abort,
    "memory-shared": eat_shared_memory,
    "memory-ffmpeg": exhaust_ffmpeg,
    "leak": leak,
    "flood": flood,
    "garbage": write_to_the_reader(b"\xff" * 64),
    "no-json": write_to_the_reader(b"\0\0\0\2{]"),
    "unknown-type": write_to_the_reader(b'\0\0\0\x0e{"type": "hi"}'),
    "half-a-message": write_to_the_reader(b'\0\0\0\x0e{"type'),
    "fail": fail,
    "mistake": mistake,
    "slow": lambda: time.sleep(0.3),
    "fine": nothing,
}


def decode_frames(file, sampling, frame_size, backend, on_planned, on_decoder, allocate) -> DecodedVideo:
    """`NAME.mp4` acts while it is decoded, `NAME@open.mp4` before, `NAME@decord.mp4` in that decoder alone.

    `NAME+3600.mp4` claims to be an hour long.
    """
    name, _, duration = (file.path.stem if file.path else "").partition("+")
    name, _, place = name.partition("@")
    if name not in ACTIONS:
        return really_decode(file, sampling, frame_size, backend, on_planned, on_decoder, allocate)
    info = VideoInfo(float(duration or 1), 2.0, PIXELS[2], PIXELS[1], "h264")
    if place == "open":
        ACTIONS[name]()
    on_planned(info)
    decoder = "decord" if backend == "auto" else backend
    on_decoder(decoder)
    began_at = time.monotonic()
    if place in ("", decoder):
        ACTIONS[name]()
    frames = allocate(PIXELS)
    frames[...] = np.arange(frames.size, dtype=np.uint8).reshape(PIXELS)
    return DecodedVideo(frames, [began_at, time.monotonic()], info, decoder)


if __name__ == "__main__":
    decode.decode_frames = decode_frames
    child.main()
