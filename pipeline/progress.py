"""What a running job tells of itself while it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["fetch", "plan", "wait", "start", "answer", "done"]
Stage = Literal["fetching", "decoding", "answering"]
_WINDOW_S = 120.0  # rates are those of the last two minutes: what the job does now


@dataclass(frozen=True)
class Progress:
    """A moment of a run: `rows` of `total` of this start are answered or failed, `failed` of them failed.

    Phases: fetch (a model that lies elsewhere), wait (for a run that may hold the output), plan
    (reading the manifest, and what is there already), start (the cluster, then the model), answer,
    done. `note` is something to be told once, in a line of its own.

    What follows is of the last two minutes, and None until there is a rate. `decoders_busy` and
    `answerers_busy` are the shares, 0 to 1, of the time of the workers that live now in which they
    decode, and in which the model runs. `limited_by` is the busiest stage: a run is faster with more
    of its workers. None where all of them wait for most of their time.
    """

    phase: Phase
    rows: int = 0
    failed: int = 0
    total: int = 0
    note: str = ""
    rows_per_s: float | None = None
    remaining_s: float | None = None
    decoders_busy: float | None = None
    answerers_busy: float | None = None
    limited_by: Stage | None = None


OnProgress = Callable[[Progress], None]


class Pace:
    """How fast sums grow over the last minutes. Times are seconds of any clock that only goes forward."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: deque[tuple[float, tuple[float, ...]]] = deque()

    def rates(self, sums: tuple[float, ...], now: float) -> tuple[float, ...] | None:
        """Take the sums of now; how much each grows in a second. None in the first second."""
        if not self._seen or now - self._seen[-1][0] >= 1.0:
            self._seen.append((now, sums))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        if now - since < 1.0:
            return None
        return tuple((value - old) / (now - since) for value, old in zip(sums, before, strict=True))
