"""What `lease.json` says of the run that holds a lease."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Self

from pipeline.errors import one_line


@dataclass(frozen=True)
class LeaseRecord:
    """A holder and its latest renewal. `token` and `released` decide; the rest, with times by its own clock, is told.

    `renewals` makes every content differ from all earlier ones.
    """

    token: str
    holder: str
    host: str
    pid: int
    started: str
    renewed: str
    renewals: int = 0
    released: bool = False

    @classmethod
    def new(cls, holder: str) -> Self:
        """The first record of this process, which calls itself `holder`."""
        now = _now()
        return cls(secrets.token_hex(16), one_line(holder), socket.gethostname(), os.getpid(), now, now)

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """The record in a file's content; None where it is damaged: a lease of who knows whom."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None

    def dump(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def next(self, *, released: bool) -> LeaseRecord:
        """The record of the next renewal, or of the release."""
        return replace(self, renewed=_now(), renewals=self.renewals + 1, released=released)

    def __str__(self) -> str:
        """The holder as messages name it."""
        return f"{self.holder} (process {self.pid} on {self.host}, begun {self.started})"


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S UTC}"
