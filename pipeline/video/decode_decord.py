"""Chosen frames through decord, where it can be trusted to give those that were asked for.

decord finds a frame by counting from a keyframe, and hands out whatever it then has. It miscounts where frames
lead their keyframe (open GOPs, the default of x265) and where seeks land elsewhere than in FFmpeg's indexed
containers, so such files are refused, and so are those of which it sees other frames than the table has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import decord
import numpy as np

from pipeline.errors import RowError
from pipeline.video.file import VideoFile
from pipeline.video.frame_table import FrameTable

# FFmpeg inside decord prints kilobytes for a damaged stream; what matters comes back as an exception.
decord.logging.set_level(decord.logging.QUIET)

_SOURCE_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_CHUNK_BYTES = 64 * 1024 * 1024  # of frames as coded that wait at a time: ten of 1080p, two of 2160p
_CLOSE_S = 0.002  # two times this far apart are the same
_FLOAT32 = 2.0**-22  # how exact decord's own times are, as a share of them
_MATROSKA = b"\x1a\x45\xdf\xa3"


def read_frames(
    file: VideoFile, table: FrameTable, indices: Sequence[int] | np.ndarray, rotation: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Each frame of `indices` (ascending), uint8 RGB [H, W, 3], with its index; `rotation` can only be 0.

    Raises RowError decode/decode_failed, also where decord cannot be trusted with the file.
    """
    if file.path is None:
        raise RowError("decode", "decode_failed", "decord reads whole files only")
    if rotation:  # it turns some by itself, not those in Matroska, and then fails at most widths
        raise RowError("decode", "decode_failed", "decord does not turn pictures reliably")
    if not _has_index(file.path):
        raise RowError("decode", "decode_failed", "decord mistakes frames for others outside MP4 and Matroska")
    if _has_open_gops(table):
        raise RowError("decode", "decode_failed", "decord mistakes frames for others in streams with open GOPs")
    places = np.asarray(indices, np.int64)
    try:
        # One thread: the pool has one decoder a core, and threads of one video would fight for it.
        reader = decord.VideoReader(str(file.path), ctx=decord.cpu(0), num_threads=1, fault_tol=0)
        _check_frames(reader, table)
        height, width, _ = reader[int(places[0])].shape
        at_once = max(1, _CHUNK_BYTES // (height * width * 3))
        for begin in range(0, len(places), at_once):
            chunk = places[begin : begin + at_once].tolist()
            yield from zip(chunk, reader.get_batch(chunk).asnumpy(), strict=True)
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, IndexError) as error:
        raise RowError("decode", "decode_failed", _reason(error)) from error


def _has_index(path: Path) -> bool:
    """Whether it is an MP4 or Matroska file, in which a seek leads to the keyframe before a time."""
    with path.open("rb") as file:
        head = file.read(8)
    return head[4:] == b"ftyp" or head[:4] == _MATROSKA


def _has_open_gops(table: FrameTable) -> bool:
    """Whether any frame is shown before a keyframe that is decoded before it."""
    latest = np.maximum.accumulate(table.decode_rank)
    return bool((latest > table.decode_rank)[table.is_key].any())


def _check_frames(reader: decord.VideoReader, table: FrameTable) -> None:
    """Frame i of decord must be frame i of the table: as many, and each as long after the first as there."""
    if len(reader) != len(table):
        raise RowError("decode", "decode_failed", f"decord sees {len(reader)} frames where there are {len(table)}")
    found = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64).reshape(-1, 2)[:, 0]
    known = table.times_s[:, 0]
    apart = np.abs((found - found[0]) - (known - known[0]))
    if not (apart <= _CLOSE_S + _FLOAT32 * np.abs(found)).all():
        raise RowError("decode", "decode_failed", "decord sees frames at other times than the file gives them")


def _reason(error: Exception) -> str:
    # decord wraps its one line in the places of its source files and a C++ stack trace.
    return _SOURCE_PLACE.sub("", str(error).strip().partition("\n")[0])
