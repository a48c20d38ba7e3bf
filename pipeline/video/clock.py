"""What a read has taken so far, phase by phase, and what it has left until its deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReadTimes:
    """Seconds of one read, all attempts together, whether it ended well or not.

    `open_s`: the file was opened and its frames chosen. `decode_s`: they were decoded. `fetch_s`: the process
    waited for bytes, `wait_s`: for the permission to decode. `cpu_s` is what the process computed in all of
    it. The start of a process, which serves many videos, is in none of them.
    """

    open_s: float = 0.0
    decode_s: float = 0.0
    fetch_s: float = 0.0
    wait_s: float = 0.0
    cpu_s: float = 0.0


class Clock:
    """Runs in one phase at a time: start, open, decode, fetch or wait. Opening and decoding count as work."""

    def __init__(self, deadline_s: float) -> None:
        """Begin in the phase start; `deadline_s` is for all work together, and may be set again later."""
        self.deadline_s = deadline_s
        self.cpu_s = 0.0
        self._seconds = dict.fromkeys(("start", "open", "decode", "fetch", "wait"), 0.0)
        self._phase = "start"
        self._since = time.monotonic()

    def enter(self, phase: str) -> None:
        """Count for `phase` from now on."""
        now = time.monotonic()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count for `phase`, and then again for the present one."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    @property
    def starting(self) -> bool:
        """Whether no work has begun yet."""
        return self._phase == "start"

    @property
    def worked_s(self) -> float:
        """All work up to now."""
        self.enter(self._phase)
        return self._seconds["open"] + self._seconds["decode"]

    @property
    def left_s(self) -> float:
        """Until the deadline; negative behind it."""
        return self.deadline_s - self.worked_s

    def times(self) -> ReadTimes:
        """What it has counted."""
        self.enter(self._phase)
        waited = {f"{phase}_s": seconds for phase, seconds in self._seconds.items() if phase != "start"}
        return ReadTimes(**waited, cpu_s=self.cpu_s)
