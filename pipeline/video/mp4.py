"""The index of an MP4 or MOV file (ISO 14496-12): every sample's place, size and time, without reading a sample.

FFmpeg reads the same boxes, but tells the times only packet by packet, and reads each packet for it. Nothing
here trusts a file: a table that is longer than its box, or odd in any other way, ends in None.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, degrees

import numpy as np

from pipeline.video.mp4_boxes import child, children

_MOST_SAMPLES = 1 << 24  # three days at 60 frames a second


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The m samples of a track in decoding order: int64 [m] each but `is_key`, bool [m].

    `offset` and `size` in bytes; `dts`, `pts` and `duration` in units of 1 / `timescale` s on the track's own
    clock, which starts at 0 with the first sample. The edit list shows [`shown_from`, `shown_until`) of that clock.
    `reorder` is how far the largest negative composition offset reaches.
    """

    timescale: int
    dts: np.ndarray
    pts: np.ndarray
    duration: np.ndarray
    is_key: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    reorder: int
    shown_from: int
    shown_until: int | None


def read_rotation(moov: memoryview, track_id: int) -> int:
    """By how many degrees the pictures of a track are to be turned clockwise: 0, 90, 180 or 270.

    From the matrix of its header, to the nearest quarter turn. A mirror image stays one.
    """
    track = _track(moov, track_id)
    header = child(track, b"tkhd") if track is not None else None
    if header is None:
        return 0
    at = 40 if header[0] == 0 else 52  # past times, ids, layer and volume
    matrix = np.frombuffer(header[at : at + 36], ">i4")
    if len(matrix) < 5:
        return 0
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    if a * d - b * c < 0:
        a, b = -a, -b
    return round(degrees(atan2(b, a)) / 90) % 4 * 90


def read_samples(moov: memoryview, track_id: int) -> SampleTable | None:
    """The samples of a track. None where the index does not list them all or is damaged, or the edit list is unusual.

    Usual is none at all, or one stretch at normal speed, after a pause or at once.
    """
    try:
        return _read_samples(moov, track_id)
    except (ValueError, IndexError, OverflowError):  # numbers that contradict each other, boxes that are too short
        return None


def _read_samples(moov: memoryview, track_id: int) -> SampleTable | None:
    track = _track(moov, track_id)
    media = child(track, b"mdia") if track is not None else None
    tables = child(media, b"minf", b"stbl") if media is not None else None
    if track is None or media is None or tables is None or child(moov, b"mvex") is not None:
        return None
    timescale, movie_timescale = _timescale(media, b"mdhd"), _timescale(moov, b"mvhd")
    size = _sizes(tables)
    count = len(size)
    duration = _spread(_table(tables, b"stts", ">u4", 2), count)
    # Older files hold these without a sign, in numbers too small for that to matter.
    shift_runs = _table(tables, b"ctts", ">i4", 2) if child(tables, b"ctts") is not None else np.array([[count, 0]])
    shift = _spread(shift_runs, count)
    if (duration >= 1 << 31).any():
        return None
    dts = np.cumsum(duration) - duration
    shown = _shown(track, timescale, movie_timescale)
    if shown is None:
        return None
    return SampleTable(
        timescale=timescale,
        dts=dts,
        pts=dts + shift,
        duration=duration,
        is_key=_sync_samples(tables, count),
        size=size,
        offset=_offsets(tables, size),
        reorder=_reorder(shift_runs),
        shown_from=shown[0],
        shown_until=shown[1],
    )


def _sizes(tables: memoryview) -> np.ndarray:
    """Bytes of each sample, int64 [m]: from `stsz`, or from `stz2`, where they take 4, 8 or 16 bits each."""
    box = child(tables, b"stsz")
    if box is not None:
        same, count = (int(n) for n in np.frombuffer(box[4:12], ">u4"))
        if count > _MOST_SAMPLES:
            raise ValueError("more samples than any video has")
        return np.full(count, same) if same else np.frombuffer(box[12:], ">u4", count).astype(np.int64)
    box = child(tables, b"stz2")
    if box is None:
        raise ValueError("no sizes")
    bits, count = box[7], int.from_bytes(box[8:12], "big")
    if bits == 4:
        pairs = np.frombuffer(box[12:], np.uint8, (count + 1) // 2)
        return np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)[:count].astype(np.int64)
    return np.frombuffer(box[12:], {8: ">u1", 16: ">u2"}.get(bits, ">u4"), count).astype(np.int64)


def _offsets(tables: memoryview, size: np.ndarray) -> np.ndarray:
    """Where each sample begins in the file, int64 [m]: samples lie back to back in chunks of known places."""
    large = child(tables, b"co64") is not None
    chunks = _table(tables, b"co64" if large else b"stco", ">u8" if large else ">u4", 1)[:, 0]
    runs = _table(tables, b"stsc", ">u4", 3)  # from this chunk (counted from 1) on, so many samples a chunk
    lengths = np.diff(np.append(runs[:, 0], len(chunks) + 1))
    if len(runs) == 0 or runs[0, 0] != 1 or (lengths < 0).any() or (runs[:, 1] > len(size)).any():
        raise ValueError("chunks that cannot be")
    in_chunk = np.repeat(runs[:, 1], lengths)
    if int(in_chunk.sum()) != len(size):
        raise ValueError("chunks and samples do not add up")
    before = np.append(0, np.cumsum(size))  # bytes of all samples before each
    first = np.cumsum(in_chunk) - in_chunk
    return before[:-1] + np.repeat(chunks - before[first], in_chunk)


def _sync_samples(tables: memoryview, count: int) -> np.ndarray:
    """bool [m]: the samples that `stss` lists; all, where there is no such box."""
    if child(tables, b"stss") is None:
        return np.ones(count, bool)
    numbers = _table(tables, b"stss", ">u4", 1)[:, 0]  # counted from 1
    if len(numbers) == 0 or numbers.min() < 1:
        raise ValueError("no keyframes are listed")  # FFmpeg looks for them in the stream itself then
    is_key = np.zeros(count, bool)
    is_key[numbers - 1] = True
    return is_key


def _shown(track: memoryview, timescale: int, movie_timescale: int) -> tuple[int, int | None] | None:
    """The stretch of the track's own clock that its edit list shows; None for a list of another kind."""
    edits = child(track, b"edts", b"elst")
    if edits is None or len(edits) < 8:
        return 0, None
    # each: a duration on the movie's clock, where it begins on the track's (-1: nothing is shown), a speed
    kinds = (">u8", ">i8") if edits[0] == 1 else (">u4", ">i4")
    layout = np.dtype([("duration", kinds[0]), ("begin", kinds[1]), ("speed", ">i4")])
    entries = np.frombuffer(edits[8:], layout, int.from_bytes(edits[4:8], "big"))
    if len(entries) == 0:
        return 0, None
    last = entries[-1]
    if (entries["begin"][:-1] != -1).any() or last["begin"] < 0 or last["speed"] != 1 << 16 or last["duration"] == 0:
        return None
    lasts = (int(last["duration"]) * timescale + movie_timescale // 2) // movie_timescale
    return int(last["begin"]), int(last["begin"]) + lasts


def _reorder(shift_runs: np.ndarray) -> int:
    # FFmpeg leaves the last two runs out: some writers put nonsense there.
    return max(0, -int(shift_runs[:-2, 1].min())) if len(shift_runs) > 2 else 0


def _spread(runs: np.ndarray, count: int) -> np.ndarray:
    """The values of `runs` (how often, value), one for each of `count` samples."""
    if (runs[:, 0] < 0).any() or not count <= int(runs[:, 0].sum()) <= _MOST_SAMPLES:
        raise ValueError("runs and samples do not add up")
    return np.repeat(runs[:, 1], runs[:, 0])[:count]


def _table(boxes: memoryview, kind: bytes, number: str, columns: int) -> np.ndarray:
    """The rows of a table box, int64 [rows, columns]. Raises ValueError without one."""
    box = child(boxes, kind)
    if box is None:
        raise ValueError(f"there is no {kind!r}")
    rows = int.from_bytes(box[4:8], "big")
    if rows > _MOST_SAMPLES:
        raise ValueError("more rows than any video has samples")
    return np.frombuffer(box[8:], number, rows * columns).astype(np.int64).reshape(rows, columns)


def _track(moov: memoryview, track_id: int) -> memoryview | None:
    """The track of this id."""
    for kind, track in children(moov):
        header = child(track, b"tkhd") if kind == b"trak" else None
        if header is not None and len(header) >= 24:
            at = 20 if header[0] == 1 else 12
            if int.from_bytes(header[at : at + 4], "big") == track_id:
                return track
    return None


def _timescale(boxes: memoryview, kind: bytes) -> int:
    """Units a second of the clock that a header box sets."""
    header = child(boxes, kind)
    at = 20 if header is not None and header[0] == 1 else 12
    if header is None or not int.from_bytes(header[at : at + 4], "big"):
        raise ValueError("a clock that stands still")
    return int.from_bytes(header[at : at + 4], "big")
