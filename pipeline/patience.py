"""Waiting out a storage that is away for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import ClusterError

_T = TypeVar("_T")
Kinds = tuple[type[Exception], ...]
OUTAGE_S = 60.0  # a restart of an S3 server, or a network that is switched over, takes less
_PAUSE_S = 1.0


def patiently(
    action: Callable[[], _T],
    outage_s: float = OUTAGE_S,
    final: Kinds = (),
    pause_s: float = _PAUSE_S,
    away: Kinds = (ClusterError,),
) -> _T:
    """What `action` returns, tried again for `outage_s` while it raises one of `away`, but not one of the `final` ones.

    `action` must be safe to repeat; `pause_s` lies between two tries. Raises what it raised last.
    """
    deadline = time.monotonic() + outage_s
    while True:
        try:
            return action()
        except final:
            raise
        except away:
            if time.monotonic() >= deadline:
                raise
        time.sleep(pause_s)
