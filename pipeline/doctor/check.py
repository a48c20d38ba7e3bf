"""A check, what it found, and running many of them at once, each within its own time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.errors import ClusterError, UserError, scrub

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What a check found, in a line, and what to do about it.

    `is_away` tells a cluster or a storage that does not answer from what the user must change.
    """

    status: Status
    found: str
    advice: str = ""
    is_away: bool = False


@dataclass(frozen=True)
class Check:
    """`look` finds out, within `limit_s` seconds. `advice` is for when it raises or does not come back."""

    name: str
    look: Callable[[], Finding]
    limit_s: float = 30.0
    advice: str = ""
    is_remote: bool = False
    """Whether it waits for others: not to come back is then their failure."""


@dataclass
class _Running:
    check: Check
    finding: Finding | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            found = self.check.look()
        except UserError as error:
            found = Finding("fail", str(error), self.check.advice)
        except ClusterError as error:
            found = Finding("fail", str(error), self.check.advice, is_away=True)
        except Exception as error:  # whatever a broken installation throws is the finding
            found = Finding("fail", f"{type(error).__name__}: {error}", self.check.advice)
        self.finding = replace(found, found=" ".join(scrub(found.found).split()))
        self.done.set()


def examine(checks: Sequence[Check]) -> list[tuple[str, Finding]]:
    """What each check found, by name and in the order given. All run at once; one that hangs is left behind."""
    running = [_Running(check) for check in checks]
    started = time.monotonic()
    for one in running:
        threading.Thread(target=one.run, daemon=True, name=f"doctor {one.check.name}").start()
    found = []
    for one in running:
        one.done.wait(max(0.0, started + one.check.limit_s - time.monotonic()))
        found.append((one.check.name, one.finding or _no_answer(one.check)))
    return found


def _no_answer(check: Check) -> Finding:
    return Finding("fail", f"no answer within {check.limit_s:g} s", check.advice, is_away=check.is_remote)


def exit_status(found: Sequence[tuple[str, Finding]]) -> int:
    """0 where nothing failed; 2 where the user must change something; 3 where only cluster or storage are away."""
    failed = [finding for _, finding in found if finding.status == "fail"]
    return 0 if not failed else 3 if all(finding.is_away for finding in failed) else 2
