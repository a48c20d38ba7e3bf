"""Decode chosen frames of a local file.

A plain function of its arguments, without state between calls: a child process with a deadline
can run it as it is. decord cannot be interrupted, so a caller that needs a deadline needs that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np

from pipeline.errors import RowError
from pipeline.video.probe import VideoInfo, is_cut_short, probe
from pipeline.video.timestamps import uniform_indices

# FFmpeg inside decord prints kilobytes for a damaged stream; what matters comes back as an exception.
decord.logging.set_level(decord.logging.QUIET)

_SOURCE_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")


@dataclass(frozen=True)
class DecodedVideo:
    """Frames of one video: uint8 RGB [T, H, W, 3], and when each begins, in seconds [T]."""

    frames: np.ndarray
    frame_times_s: list[float]
    info: VideoInfo
    backend: str


def decode_frames(path: Path, frames: int, start_s: float | None = None, end_s: float | None = None) -> DecodedVideo:
    """Decode up to `frames` frames at exact uniform times of the range [start_s, end_s).

    A video with fewer frames gives all of them. Raises RowError at stage decode: those of `probe`,
    and no_frames, truncated, decode_failed.
    """
    info = probe(path)
    try:
        # One thread: the pool has one decoder a core, and threads of one video would fight for it.
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        times = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64).reshape(-1, 2)
        times = times.round(6)  # decord keeps float32: 0.7 s must not lie before 0.7
        chosen = uniform_indices(times, frames, start_s, end_s)
        if len(chosen) == 0:
            raise RowError("decode", "no_frames", f"no frame is shown from {_range(start_s, end_s)}")
        pixels = reader.get_batch(chosen.tolist()).asnumpy()
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
        code = "truncated" if is_cut_short(path) else "decode_failed"
        raise RowError("decode", code, _reason(error)) from error
    return DecodedVideo(pixels, times[chosen, 0].tolist(), info, "decord")


def _range(start_s: float | None, end_s: float | None) -> str:
    begin = "the start" if start_s is None else f"{start_s:g} s"
    end = "the end" if end_s is None else f"{end_s:g} s"
    return f"from {begin} to {end}"


def _reason(error: Exception) -> str:
    # decord wraps its one line in the places of its source files and a C++ stack trace.
    return _SOURCE_PLACE.sub("", str(error).strip().partition("\n")[0])
