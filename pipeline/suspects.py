"""Work that kills its process: it is told from the work beside it, and given up after a few attempts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.attempts import Attempts
from pipeline.errors import RowError


class WorkerDied(RowError):
    """A video is given up after `deaths` processes, at a `stage` as in an error row."""

    def __init__(self, stage: str, deaths: int) -> None:
        """The code is worker_died."""
        super().__init__(stage, "worker_died", f"the process that worked on it died {deaths} times")
        self.deaths = deaths


class Suspects:
    """Guards the work of one process, which does several things at once.

    When a process dies, all that was in work is suspect. A suspect is then tried again with a process
    to itself: what is innocent ends, and only the count of what kills its process goes on rising.
    """

    def __init__(self, stage: str, attempts: Attempts | None, retries: int) -> None:
        """`stage` as in WorkerDied; without `attempts` nothing is guarded. `retries` further attempts are made."""
        self._stage = stage
        self._attempts = attempts
        self._retries = retries
        self._turns = Turns()
        self._thread = threading.local()

    @contextmanager
    def attempt(self, shard: str, group: str) -> Iterator[int]:
        """For the length of the work on a group; gives how many processes died of it before.

        Raises WorkerDied instead of a further attempt when these were too many.
        """
        if self._attempts is None:
            yield 0
            return
        # What a thread made last is safe only now: handing it on may be what a process dies of.
        if previous := getattr(self._thread, "work", None):
            self._attempts.end(previous)
        self._thread.work = work = f"{self._stage} {shard} {group}"
        with self._turns.together():
            deaths = self._attempts.begin(work)
            if not deaths:
                yield 0
                return
        if deaths <= self._retries:
            with self._turns.alone():
                yield self._attempts.begin(work, alone=True)
            return
        raise WorkerDied(self._stage, deaths)


class Turns:
    """Things are done together, or one alone. Who wants to be alone comes before all that have not begun."""

    def __init__(self) -> None:
        """Nothing is done."""
        self._changed = threading.Condition()
        self._together = 0
        self._alone = 0  # and those that wait for it
        self._is_alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Beside others that are here."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Beside nobody."""
        with self._changed:
            self._alone += 1
            self._changed.wait_for(lambda: not self._together and not self._is_alone)
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._is_alone = False
                self._alone -= 1
                self._changed.notify_all()
