"""A remote video of which only the needed bytes are fetched, into a sparse local file without a name.

The process that decodes holds the same open file and asks for byte ranges; here they are put
together, fetched in parallel, and tried again where that may help. Nothing is left on the disk when
the processes that hold it end, however they end.
"""

from __future__ import annotations

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from pipeline.errors import RowError
from pipeline.patience import OUTAGE_S, patiently
from pipeline.remote_object import ObjectChanged, RemoteObject, StorageAway, open_object
from pipeline.storage import fetch_errors
from pipeline.video.byte_ranges import byte_count, clipped, merged, without
from pipeline.video.file import ByteRange

KIB, MIB = 1024, 1024 * 1024
HEAD = 256 * KIB  # what the first request asks for: the headers of most files, and the index of a short one
SMALL_FILE = MIB  # up to here one more request for all of it costs less than choosing
READ_AHEAD = 64 * KIB  # what a request asks for at least
GAP = 128 * KIB  # fetching as much as this between two ranges takes less time than a request of its own
LARGEST_REQUEST = 8 * MIB
PARALLEL_REQUESTS = 8
FIRST_BACKOFF_S = 0.5  # before the second try; doubled before each further one
T = TypeVar("T")


class FileChanged(RowError):
    """The object was replaced while it was read: what was made of its bytes is void, and reading begins anew.

    It counts as fetch_failed where nobody starts over.
    """


class Away(RowError):
    """The storage is away: fetch_failed, if it stays so."""


class RemoteFile:
    """A remote object and the local sparse file that its bytes are put into, each at its own place.

    The first use of `size`, `present` or `fetch` makes the first request. Every method and property that makes one
    raises RowError at stage fetch: not_found, forbidden (neither is tried again), fetch_failed (for a storage that
    is away only after OUTAGE_S of patience with each request). Not to be used by two threads at once.

    `fd` is open for as long as this object; `bytes_fetched` counts what was transferred, again where it was
    transferred again; `attempts` is how many tries the most stubborn request took, at least 1 after the first;
    `fetch_s` is the wall time spent on requests.
    """

    def __init__(self, uri: str, retries: int, folder: Path) -> None:
        """`retries` further tries for each request that fails; the sparse file takes its space from `folder`'s disk."""
        self.uri = uri
        self.bytes_fetched = 0
        self.attempts = 0
        self.fetch_s = 0.0
        self._retries = retries
        self._object: RemoteObject | None = None
        self._size = 0
        self._present: list[ByteRange] = []
        self._has_changed = False
        self._counting = threading.Lock()
        try:
            # Opened with O_TMPFILE: it never has a name. Closed by close().
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise RowError("fetch", "fetch_failed", f"no file can be made in {folder}: {error.strerror}") from error
        self.fd = self._file.fileno()

    @property
    def size(self) -> int:
        """The object's bytes."""
        self._begin()
        return self._size

    @property
    def present(self) -> list[ByteRange]:
        """What is at hand: sorted, and no two ranges touch."""
        self._begin()
        return list(self._present)

    def fetch(self, ranges: Iterable[Sequence[int]]) -> list[ByteRange]:
        """Make sure that `ranges` are at hand, as far as the file reaches; returns `present`.

        Raises FileChanged when the object was replaced since the first request: the first time, `size` and `present`
        then begin anew for the new object and all that was read before must be forgotten; a second time it is a
        plain fetch_failed.
        """
        self._begin()
        missing = self._plan(clipped(ranges, self._size))
        if missing:
            self._timed(lambda: self._fetch_all(missing))
            self._present = merged([*self._present, *missing])
        return list(self._present)

    def close(self) -> None:
        """Give the file's space back, once the other processes that hold it close it too."""
        self._file.close()

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _begin(self) -> None:
        while self._object is None:
            self._timed(self._begin_once)
            if self._size <= SMALL_FILE:
                with suppress(FileChanged):  # nobody has seen a byte of it yet
                    self.fetch([(0, self._size)])

    def _begin_once(self) -> None:
        with fetch_errors(self.uri):
            remote = open_object(self.uri)
        self._size, self._present = self._try(lambda: remote.begin(HEAD, self._store))
        with fetch_errors(self.uri):
            os.truncate(self.fd, self._size)
        self._object = remote

    def _plan(self, wanted: list[ByteRange]) -> list[ByteRange]:
        """The ranges to be fetched so that `wanted` is at hand: all that is missing when that is most of the file."""
        missing = without(wanted, self._present)
        ahead = clipped(((begin, max(end, begin + READ_AHEAD)) for begin, end in missing), self._size)
        missing = without(merged(ahead, gap=GAP), self._present)
        if missing and byte_count(self._present) + byte_count(missing) > self._size // 2:
            missing = without([(0, self._size)], self._present)
        return missing

    def _fetch_all(self, ranges: list[ByteRange]) -> None:
        parts = [
            (begin, min(begin + LARGEST_REQUEST, end))
            for first, end in ranges
            for begin in range(first, end, LARGEST_REQUEST)
        ]
        try:
            with ThreadPoolExecutor(min(PARALLEL_REQUESTS, len(parts))) as pool:
                try:
                    for done in [pool.submit(self._fetch_one, part) for part in parts]:
                        done.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self._try(self._object.check)
        except ObjectChanged:
            self._start_over()

    def _fetch_one(self, part: ByteRange) -> None:
        self._try(lambda: self._object.read(*part, self._store))

    def _start_over(self) -> None:
        if self._has_changed:
            raise RowError("fetch", "fetch_failed", f"{self.uri} changed twice while it was read")
        self._has_changed = True
        self._object, self._present = None, []
        os.truncate(self.fd, 0)
        raise FileChanged("fetch", "fetch_failed", f"{self.uri} changed while it was read")

    def _try(self, request: Callable[[], T]) -> T:
        """Its result, after as many tries as are allowed, or once an outage has ended. ObjectChanged passes."""
        tries = count(1)
        return patiently(lambda: self._try_some(request, tries), OUTAGE_S, away=(Away,))

    def _try_some(self, request: Callable[[], T], tries: Iterator[int]) -> T:
        for retry in range(self._retries + 1):
            if retry:
                # Not all at the same moment: requests that were throttled together would be throttled together again.
                time.sleep(FIRST_BACKOFF_S * 2 ** (retry - 1) * random.uniform(0.5, 1.0))  # noqa: S311
            with self._counting:
                self.attempts = max(self.attempts, next(tries))
            try:
                with fetch_errors(self.uri):
                    return request()
            except RowError as error:
                failure = error
            if failure.code != "fetch_failed":
                break
        if isinstance(failure.__cause__, StorageAway):
            raise Away(failure.stage, failure.code, failure.message) from failure
        raise failure

    def _store(self, place: int, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self.fd, memoryview(data)[written:], place + written)
        with self._counting:
            self.bytes_fetched += len(data)

    def _timed(self, action: Callable[[], None]) -> None:
        started = time.perf_counter()
        try:
            action()
        finally:
            self.fetch_s += time.perf_counter() - started
