"""What a running job tells of itself while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["fetch", "plan", "wait", "start", "answer", "done"]
_WINDOW_S = 120.0  # the rate is that of the last two minutes: what the job does now


@dataclass(frozen=True)
class Progress:
    """A moment of a run: `rows` of `total` of this start are answered or failed, `failed` of them failed.

    Phases: fetch (a model that lies elsewhere), wait (for a run that may hold the output), plan
    (reading the manifest, and what is there already), start (the cluster, then the model), answer,
    done. `note` is something to be told once, in a line of its own. `rows_per_s` and `remaining_s`
    are None until there is a rate.
    """

    phase: Phase
    rows: int = 0
    failed: int = 0
    total: int = 0
    note: str = ""
    rows_per_s: float | None = None
    remaining_s: float | None = None


OnProgress = Callable[[Progress], None]


class Pace:
    """The rate of a job over the last minutes. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: deque[tuple[float, int]] = deque()

    def rows_per_s(self, rows: int, now: float) -> float | None:
        """Take how many rows there are now; the rate, None in the first second after the first rows."""
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, rows))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        return (rows - before) / (now - since) if now - since >= 1.0 else None
