"""Measure every system on every clip, one process at a time, and keep what is measured for the next call."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.benchmark.decode.clips import FPS, WARM_UP, Recipe, make_clip
from pipeline.benchmark.decode.measure import Measured, Order
from pipeline.benchmark.decode.systems import POLICIES
from pipeline.benchmark.decode.timeline import Timeline
from pipeline.benchmark.decode.usage import Usage
from pipeline.errors import one_line
from pipeline.provenance import code_version

_DEADLINE_S = 600.0  # of the clock, for one process; nothing else ends a decoder that hangs
_REPEATED_S = 5.0  # what takes longer than this of a processor is measured once
_COMPARED = ("uniform", "keyframe")  # the other policies have nothing beside them, and are measured once


@dataclass(frozen=True)
class Row:
    """The least that repeated measurements took, of memory the most; the columns of the file that is written.

    Seconds of processor and of the clock, MiB of resident memory, bytes that were read. `max_time_error_s`
    is None under policies that are asked for no certain times.
    """

    clip: str
    duration_s: float
    codec: str
    system: str
    policy: str
    frames: int
    cpu_s: float
    wall_s: float
    peak_mb: float
    bytes_read: int
    max_time_error_s: float | None


@dataclass(frozen=True)
class Clip:
    """A file that is measured. `part`: its frames carry their numbers modulo this."""

    name: str
    path: Path
    part: int | None = None


@dataclass(frozen=True)
class ClipRows:
    """What was measured on a clip, and a line for each thing that could not be."""

    clip: str
    timeline: Timeline | None
    rows: list[Row]
    failures: list[str]


class WorkerError(Exception):
    """A measuring process gave no result."""


class Bench:
    """Measurements at `frames` frames, each at most `repeats` times. What is finished lies in `folder`."""

    def __init__(self, folder: Path, frames: int, repeats: int, report: Callable[[str], None]) -> None:
        """`report` is told what is being done. The folder is made."""
        self.folder, self.frames, self.repeats, self.report = folder, frames, repeats, report
        folder.mkdir(parents=True, exist_ok=True)
        self._ledger = folder / "measured.jsonl"
        self._known = dict(_read_ledger(self._ledger))
        self._missing: set[str] = set()
        self._warm_up = make_clip(WARM_UP, folder)

    def make(self, recipe: Recipe) -> Clip:
        """Encode a clip, unless a former call did."""
        self.report(f"{recipe.name}: making the clip")
        return Clip(recipe.name, make_clip(recipe, self.folder), recipe.part)

    def measure(self, clip: Clip) -> ClipRows:
        """Every system and policy on one clip, turn by turn."""
        self.report(f"{clip.name}: looking at it")
        try:
            timeline = Timeline(**_work({"look": str(clip.path.absolute()), "frames": self.frames}))
        except WorkerError as error:
            return ClipRows(clip.name, None, [], [f"{clip.name}: {error}"])
        taken: dict[tuple[str, str], list[Measured]] = {}
        failures: list[str] = []
        for turn in range(self.repeats):
            for system, policy in [(system, policy) for system, policies in POLICIES.items() for policy in policies]:
                earlier = taken.setdefault((system, policy), [])
                if system in self._missing or not _is_due(turn, policy, earlier):
                    continue
                self.report(f"{clip.name}: {system}, {policy}" + (f", again {turn}" if turn else ""))
                try:
                    measured = self._measure(clip, timeline, system, policy, turn)
                except WorkerError as error:
                    failures.append(f"{clip.name}: {system}, {policy}: {error}")
                    continue
                if measured is not None:
                    earlier.append(measured)
        rows = [_row(clip, timeline, *case, measured) for case, measured in taken.items() if measured]
        return ClipRows(clip.name, timeline, rows, failures)

    @property
    def missing(self) -> list[str]:
        """Systems that could not be imported here."""
        return sorted(self._missing)

    def _measure(self, clip: Clip, timeline: Timeline, system: str, policy: str, turn: int) -> Measured | None:
        """None where the system is not installed. Raises WorkerError."""
        key = self._key(clip, system, policy, turn)
        if key not in self._known:
            order = Order(
                system,
                policy,
                self.frames,
                str(clip.path.absolute()),
                timeline,
                str(self._warm_up.absolute()),
                clip.part,
                FPS if clip.part else None,
            )
            result = _work(asdict(order))
            if "missing" in result:
                self._missing.add(system)
                return None
            self._known[key] = result
            with self._ledger.open("a", encoding="utf-8") as ledger:
                ledger.write(json.dumps({"key": key, "measured": result}) + "\n")
        known = self._known[key]
        return Measured(**(known | {"usage": Usage(**known["usage"])}))

    def _key(self, clip: Clip, system: str, policy: str, turn: int) -> str:
        """Changes with the file and with the code, so that nothing stale is shown."""
        state = clip.path.stat()
        file = f"{clip.path.absolute()} {state.st_size} {state.st_mtime_ns}"
        return f"{code_version()} {file} {system} {policy} {self.frames} {turn}"


def _is_due(turn: int, policy: str, earlier: Sequence[Measured]) -> bool:
    if turn == 0:
        return True
    return policy in _COMPARED and bool(earlier) and earlier[-1].usage.cpu_s < _REPEATED_S


def _row(clip: Clip, timeline: Timeline, system: str, policy: str, measured: Sequence[Measured]) -> Row:
    # Whatever else the machine does can only add to a measurement: the least is nearest to the truth.
    return Row(
        clip=clip.name,
        duration_s=timeline.duration_s,
        codec=timeline.codec,
        system=system,
        policy=policy,
        frames=measured[0].frames,
        cpu_s=round(min(one.usage.cpu_s for one in measured), 4),
        wall_s=round(min(one.usage.wall_s for one in measured), 4),
        peak_mb=round(max(one.usage.peak_mb for one in measured), 1),
        bytes_read=min(one.usage.bytes_read for one in measured),
        max_time_error_s=measured[0].max_time_error_s,
    )


def _read_ledger(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # the last line of a call that was killed
            yield entry["key"], entry["measured"]


def _work(order: dict[str, Any], deadline_s: float = _DEADLINE_S) -> dict[str, Any]:
    """What a fresh process makes of an order. Raises WorkerError where it fails, dies or takes too long."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.benchmark.decode.measure"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        start_new_session=True,  # so that what it starts can be ended with it
    )
    try:
        answer, _ = process.communicate(json.dumps(order), timeout=deadline_s)
    except subprocess.TimeoutExpired:
        raise WorkerError(f"no result within {deadline_s:g} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not answer:
        raise WorkerError(f"the process ended with status {process.returncode}")
    result: dict[str, Any] = json.loads(answer)
    if "error" in result:
        raise WorkerError(one_line(result["error"], 160))
    return result
