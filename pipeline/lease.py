"""The lease on an output: one run writes to it at a time, on a local disk or on S3.

The holder replaces `runs/lease.json` every few seconds by a conditional write. Another run that finds
it watches: a lease that is renewed meanwhile belongs to a living run, one that is not is taken over,
by a conditional write too. The storage alone decides who holds it. No clocks of different machines
are compared, and none is trusted over a pause: a holder that slept, or whose storage was away, keeps
its lease if nobody took it, and learns from its next renewal if somebody did.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pipeline.conditional_write import VersionConflict, VersionedFile, read_versioned, write_if_version
from pipeline.errors import ClusterError, UserError
from pipeline.lease_record import LeaseRecord
from pipeline.patience import patiently
from pipeline.storage import absolute, join

_T = TypeVar("_T")


@dataclass(frozen=True)
class LeaseTimes:
    """Seconds: between renewals, of watching before a takeover, that one request and that an outage may take."""

    heartbeat_s: float = 5.0
    expiry_s: float = 20.0
    request_s: float = 5.0
    outage_s: float = 60.0

    @property
    def pause_s(self) -> float:
        """Between two looks of a watcher, and before a failed request is tried again."""
        return self.heartbeat_s / 5


LEASE_TIMES = LeaseTimes()


class LeaseLost(ClusterError):
    """Another run has taken the lease, or its file was deleted: nothing more may be committed."""


class Lease:
    """A lease that is held: renewed by a thread of its own, and by each `check`."""

    def __init__(self, uri: str, record: LeaseRecord, version: str, times: LeaseTimes) -> None:
        """`version` is that of the file by which this process became the holder."""
        self.uri = uri
        self._record = record
        self._version = version
        self._times = times
        self._lost: str | None = None
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Return once the storage has confirmed, after this call, that the lease is held: before each commit.

        It costs one small write, and for `expiry_s` from then on nobody can take over. Raises
        LeaseLost where the lease is another's; waits an outage out for `outage_s`, then raises its
        ClusterError; UserError where the file may no longer be written.
        """
        _patiently(self._renew, self._times)

    def release(self) -> None:
        """Let the next run begin at once; where this cannot be written, it has to wait for the expiry."""
        self._ended.set()
        self._heart.join()
        with suppress(UserError, ClusterError):
            self._renew(released=True)

    def _beat(self) -> None:
        pause_s = self._times.heartbeat_s
        while not self._ended.wait(pause_s):
            try:
                self._renew()
                pause_s = self._times.heartbeat_s
            except LeaseLost:
                return
            except (UserError, ClusterError):
                pause_s = self._times.pause_s  # it may pass; where it does not, `check` tells

    def _renew(self, *, released: bool = False) -> None:
        """One renewal that the storage has confirmed."""
        with self._renewing:
            while self._lost is None:
                self._record = self._record.next(released=released)
                data = self._record.dump()
                try:
                    self._version = write_if_version(self.uri, data, self._version, self._times.request_s)
                    return
                except VersionConflict:
                    found = read_versioned(self.uri, self._times.request_s)
                if found is not None and found.version == self._version:
                    raise ClusterError(f"cannot write {self.uri}: the storage reports a conflict where there is none")
                self._lost = self._whose(found)
                if self._lost is None and found is not None:  # a write of ours went through, its answer did not
                    self._version = found.version
                    if found.data == data:
                        return
            raise LeaseLost(f"{self._lost}; what is committed stays")

    def _whose(self, found: VersionedFile | None) -> str | None:
        """How the lease was lost, judged by what is there in its place; None if it is ours."""
        if found is None:
            return f"the lease {self.uri} was deleted"
        holder = LeaseRecord.parse(found.data)
        if holder is not None and holder.token == self._record.token:
            return None
        return f"the lease {self.uri} was lost to {holder or 'an unknown run'}"


@contextmanager
def hold_lease(
    output: str, describe: str, report: Callable[[str], None] | None = None, times: LeaseTimes = LEASE_TIMES
) -> Iterator[Lease]:
    """Hold the lease on the folder `output` for the length of a block; `describe` names the run to others.

    Waits where the lease is that of a run that may be dead, and `report`s so. Raises UserError naming
    the holder where it lives, where the output cannot be written, and where the storage ignores
    conditions; ClusterError where it is away for longer than `outage_s`.
    """
    uri = join(absolute(output), "runs", "lease.json")
    mine = LeaseRecord.new(describe)
    version = _acquire(uri, mine, report or (lambda _: None), times)
    _check_conditions(uri, mine, times)
    lease = Lease(uri, mine, version, times)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(uri: str, mine: LeaseRecord, report: Callable[[str], None], times: LeaseTimes) -> str:
    """Write `mine` where nobody holds the lease, or once its holder is dead; the answer is the file's version."""
    watch = _Watch(report, times)
    while True:
        found = _patiently(partial(read_versioned, uri, times.request_s), times)
        holder = LeaseRecord.parse(found.data) if found else None
        if found and holder and holder.token == mine.token:  # it was written, and only the answer was lost
            return found.version
        if found is None or (holder and holder.released) or watch.expired(found, holder):
            write = partial(write_if_version, uri, mine.dump(), found and found.version, times.request_s)
            with suppress(VersionConflict):  # someone was quicker: the next look shows who
                return _patiently(write, times)
        time.sleep(times.pause_s)


class _Watch:
    """Tells from looks at another's lease whether its holder lives."""

    def __init__(self, report: Callable[[str], None], times: LeaseTimes) -> None:
        self._report = report
        self._times = times
        self._version: str | None = None
        self._since = self._looked = 0.0

    def expired(self, found: VersionedFile, holder: LeaseRecord | None) -> bool:
        """Whether the lease was watched for `expiry_s` and not renewed. Raises UserError where it was."""
        now = time.monotonic()
        name = holder or "an unknown run"
        if self._version is None:
            self._version = found.version
            self._since = now
            self._report(f"the output is held by {name}; waiting up to {self._times.expiry_s:g} s for a sign of life")
        elif self._version != found.version:
            raise UserError(f"the output is being written by {name}: wait until it is done, or end it")
        elif now - self._looked > self._times.expiry_s / 2:
            self._since = now  # the storage was away, or this process slept: meanwhile nobody was seen, dead or alive
        self._looked = now
        return now - self._since >= self._times.expiry_s


def _check_conditions(uri: str, mine: LeaseRecord, times: LeaseTimes) -> None:
    """Raise UserError unless the storage refuses to create the file that is there: some ignore the condition."""
    with suppress(VersionConflict):
        _patiently(partial(write_if_version, uri, mine.dump(), None, times.request_s), times)
        raise UserError(f"cannot write {uri}: the storage ignores If-None-Match, so two runs could mix in this output")


def _patiently(action: Callable[[], _T], times: LeaseTimes) -> _T:
    """What `action` returns, tried again for `outage_s` while the storage is away."""
    return patiently(action, times.outage_s, (LeaseLost,), times.pause_s)
