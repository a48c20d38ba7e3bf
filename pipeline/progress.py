"""What a running job tells of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Phase = Literal["fetch", "plan", "start", "answer", "done"]


@dataclass(frozen=True)
class Progress:
    """A moment of a run: `rows` of `total` are answered or failed, `failed` of them failed.

    Phases: fetch (a model that lies elsewhere), plan (reading the manifest), start (the cluster, then
    the model), answer, done.
    """

    phase: Phase
    rows: int = 0
    failed: int = 0
    total: int = 0


OnProgress = Callable[[Progress], None]
