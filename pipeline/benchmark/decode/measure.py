"""One system, one policy, one file, in a process of its own: `python -m pipeline.benchmark.decode.measure`.

Reads an Order as JSON from standard input and writes what came of it, as JSON, to standard output. The order
{"look": path, "frames": n} asks for the file's timeline instead.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.benchmark.decode.pictures import read_number
from pipeline.benchmark.decode.systems import SYSTEMS, Shown, Task
from pipeline.benchmark.decode.timeline import Timeline, read_timeline
from pipeline.benchmark.decode.usage import Usage, usage_now, used_since

_ON_TIME = ("uniform", "keyframe")  # policies that are asked for certain times


@dataclass(frozen=True)
class Order:
    """`system` and `policy` on the file `path`, whose timeline is known; `warm_up` is decoded before.

    `part` and `fps` are those of a generated clip, whose frames carry their numbers modulo `part`.
    """

    system: str
    policy: str
    frames: int
    path: str
    timeline: Timeline
    warm_up: str
    part: int | None = None
    fps: int | None = None


@dataclass(frozen=True)
class Measured:
    """What decoding took, `frames` it gave, and the furthest that one of them lies from its wanted time."""

    usage: Usage
    frames: int
    max_time_error_s: float | None


def measure(order: Order) -> Measured:
    """Load the system, let it decode the warm-up, then measure it. Raises what the system raises.

    ValueError where a generated clip's frame is not the one that it is said to be.
    """
    warm = read_timeline(Path(order.warm_up), order.frames)
    with SYSTEMS[order.system]() as decode:
        decode(Task(Path(order.warm_up), order.policy, order.frames, warm.wanted_s))
        task = Task(Path(order.path), order.policy, order.frames, order.timeline.wanted_s)
        before = usage_now()
        shown = decode(task)
        usage = used_since(before)
    if order.part is not None and order.fps is not None:
        _check_numbers(shown, order.part, order.fps)
    error = _time_error(shown.times_s, task.wanted_s) if order.policy in _ON_TIME else None
    return Measured(usage, len(shown.pixels), error)


def _check_numbers(shown: Shown, part: int, fps: int) -> None:
    expected = [round(time * fps) % part for time in shown.times_s]
    found = [read_number(picture) for picture in shown.pixels]
    wrong = [pair for pair in zip(expected, found, strict=True) if pair[0] != pair[1]]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of {len(found)} frames are others than said, frame {wrong[0][1]} for {wrong[0][0]}"
        )


def _time_error(times_s: list[float], wanted_s: list[float]) -> float:
    """The largest distance from a frame to its wanted time, or, where frames are missing, to any of them."""
    times, wanted = np.asarray(times_s), np.asarray(wanted_s)
    if len(times) == len(wanted):
        return round(float(np.abs(times - wanted).max()), 6)
    return round(float(np.abs(times[:, None] - wanted[None, :]).min(axis=0).max()), 6)


def main() -> None:
    """Read the order, write the result."""
    order = json.load(sys.stdin)
    # What libraries print must not mix with the result.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        result = _obey(order)
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == order.get("system")
        result = {"missing": True} if is_missing else {"error": f"{type(error).__name__}: {error}"}
    with answer:
        answer.write(json.dumps(result))


def _obey(order: dict[str, Any]) -> dict[str, Any]:
    if "look" in order:
        return asdict(read_timeline(Path(order["look"]), order["frames"]))
    return asdict(measure(Order(**(order | {"timeline": Timeline(**order["timeline"])}))))


if __name__ == "__main__":
    main()
