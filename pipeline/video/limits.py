"""How long a video may take, how much memory, and how old a decoding process may grow."""

from __future__ import annotations

import math
from dataclasses import dataclass

# A header may claim any duration, and the deadline grows with it: longer than this a video is not taken at its word.
MOST_HOURS = 12


@dataclass(frozen=True)
class Limits:
    """What one decoding process may take.

    A video has `decode_timeout_s` seconds and `seconds_per_hour` more for every hour that it lasts (up to
    MOST_HOURS). Until its duration is known, which is while it is opened and its frames are chosen, it has
    `decode_timeout_s`. Waiting for bytes of a remote file, or for the permission to decode, does not count.

    `memory_mb`, in MiB, bounds what a process allocates and what it occupies. It is replaced after
    `videos` videos, or when it occupies `grown_mb` MiB more than it did at its least.
    """

    decode_timeout_s: float = 120.0
    seconds_per_hour: float = 600.0
    memory_mb: int = 4096
    videos: int = 500
    grown_mb: int = 512

    def deadline_s(self, duration_s: float | None) -> float:
        """The seconds that a video of this duration has; None, or no number: those of one whose duration is unknown."""
        hours = duration_s / 3600 if duration_s is not None and math.isfinite(duration_s) else 0.0
        return self.decode_timeout_s + self.seconds_per_hour * min(max(hours, 0.0), MOST_HOURS)
