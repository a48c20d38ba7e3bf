"""When the frames of a file are shown, read apart from what is measured, so that it can judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np


@dataclass(frozen=True)
class Timeline:
    """A file's frames: `wanted_s` holds the begins, in seconds, of those that lie evenly over all `frames` of them.

    `max_gap_s` is the longest time between neighbouring keyframes, the file's end counted as one.
    """

    codec: str
    frames: int
    duration_s: float
    max_gap_s: float
    wanted_s: list[float]

    @property
    def interval_s(self) -> float:
        """Seconds between neighbouring wanted frames; 0 where there is one."""
        steps = len(self.wanted_s) - 1
        return (self.wanted_s[-1] - self.wanted_s[0]) / steps if steps > 0 else 0.0


def read_timeline(path: Path, wanted: int) -> Timeline:
    """Scan the packets' headers of the first video stream. Raises av.FFmpegError, or ValueError where it has no frame.

    Seconds count from the begin of the container's first stream. Packets that the container marks to be
    discarded are no frames, and packets of one time are one frame.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        shown = [p for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard]
        if not shown:
            raise ValueError("no frame")
        base, origin = float(stream.time_base or 1), (container.start_time or 0) / av.time_base
        last = max(shown, key=_pts)
        end = (_pts(last) + (last.duration or 0)) * base - origin
        begins = np.unique([_pts(packet) for packet in shown]) * base - origin
        keys = [_pts(packet) * base - origin for packet in shown if packet.is_keyframe]
        return Timeline(
            codec=stream.codec_context.codec.canonical_name,
            frames=len(begins),
            duration_s=round(end, 3),
            max_gap_s=round(float(np.diff([*sorted(keys), end]).max()), 6) if keys else end,
            wanted_s=[round(float(begins[i]), 6) for i in evenly(len(begins), wanted)],
        )


def evenly(n: int, count: int) -> Sequence[int]:
    """linspace(0, n - 1, count) rounded: the papers' uniform frames; all of them where there are no more."""
    return list(range(n)) if n <= count else np.linspace(0, n - 1, count).round().astype(int).tolist()


def _pts(packet: av.Packet) -> int:
    return packet.pts or 0
