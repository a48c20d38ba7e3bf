"""One run in a process of its own, whose memory is then a driver's alone; and the program that it runs.

`python -m pipeline.benchmark.pipeline.driver ORDER` takes an Order as JSON and writes a Ran as JSON to
the file that it names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pipeline.engine.host_memory import resident_bytes
from pipeline.errors import one_line

_PROGRAM = "pipeline.benchmark.pipeline.driver"  # `__name__` is another in the program itself
_SAMPLE_S = 0.25


class DriverError(Exception):
    """A run that did not end well; the message is a line for people."""


@dataclass(frozen=True)
class Stub:
    """Stages that sleep: seconds a video at a decoder and a row at an answerer. `journal` as in `stubs`."""

    decode_s: float
    answer_s: float
    journal: str | None = None


@dataclass(frozen=True)
class Order:
    """What to run: a job's `key=value` settings, stubs in the places of its stages or None, where to tell of it.

    With `cores` it runs on a cluster of its own and on so many cores; None: on the one at RAY_ADDRESS.
    """

    task: str
    given: tuple[str, ...]
    told: str
    stub: Stub | None = None
    cores: int | None = None


@dataclass(frozen=True)
class Ran:
    """What was seen of a run, in seconds from its start: when planning began and ended, rows came, it ended.

    `samples`: seconds, rows that had come in, MiB of resident memory.
    """

    run_id: str
    plan_s: float
    start_s: float
    answer_s: float
    took_s: float
    samples: tuple[tuple[float, int, float], ...]

    @property
    def peak_mb(self) -> float:
        """The most memory that was resident."""
        return max(mb for _, _, mb in self.samples)


class Memory:
    """Looks at this process' memory every moment from now on, beside how many `rows` there are."""

    def __init__(self) -> None:
        """Begin."""
        self.rows = 0
        self._started = time.monotonic()
        self._samples: list[tuple[float, int, float]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._started

    def samples(self) -> tuple[tuple[float, int, float], ...]:
        """As in `Ran`."""
        return tuple(self._samples)

    def _watch(self) -> None:
        while True:
            self._samples.append((self.elapsed_s(), self.rows, (resident_bytes() or 0) / 2**20))
            time.sleep(_SAMPLE_S)


def start(order: Order, address: str | None = None) -> subprocess.Popen[bytes]:
    """The process of a run, on the Ray cluster at `address`."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if address is not None:
        environment["RAY_ADDRESS"] = address
    with _log(order).open("wb") as log:
        command = [sys.executable, "-m", _PROGRAM, json.dumps(asdict(order))]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finish(order: Order, process: subprocess.Popen[bytes]) -> Ran:
    """Wait for a run that `start` started; what was seen of it. Raises DriverError unless every row was answered."""
    status = process.wait()
    if status:
        lines = _log(order).read_text(errors="replace").strip().splitlines()
        raise DriverError(f"the run ended with {status}: {one_line(lines[-1]) if lines else 'it said nothing'}")
    told = json.loads(Path(order.told).read_text())
    return Ran(**told | {"samples": tuple(map(tuple, told["samples"]))})


def run(order: Order, address: str | None = None) -> Ran:
    """`start` and `finish`; a run that is interrupted here ends too."""
    process = start(order, address)
    try:
        return finish(order, process)
    finally:
        process.terminate()
        process.wait()


def _log(order: Order) -> Path:
    return Path(f"{order.told}.log")


def main(ordered: str) -> int:
    """Run what is ordered; the exit status is the run's."""
    import ray

    from pipeline import graph
    from pipeline.benchmark.pipeline.stubs import SleepingEngine, sleeping_decoder
    from pipeline.config_load import load_config
    from pipeline.progress import Progress
    from pipeline.run import run_job

    told = json.loads(ordered)
    order = Order(**told | {"stub": Stub(**told["stub"]) if told["stub"] else None})
    memory = Memory()
    first: dict[str, float] = {}

    def tell(now: Progress) -> None:
        memory.rows = now.rows
        first.setdefault(now.phase, memory.elapsed_s())

    load = None
    if (stub := order.stub) is not None:
        load = partial(SleepingEngine, stub.answer_s, stub.journal)
        graph.Decoder = sleeping_decoder(stub.decode_s, stub.journal)  # type: ignore[misc]  # the graph has no other seam
    if order.cores is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: order.cores])
        ray.init(
            address="local", num_cpus=order.cores, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
    summary = run_job(load_config(None, list(order.given), order.task), tell, load)
    took_s = memory.elapsed_s()
    times = {f"{phase}_s": first.get(phase, took_s) for phase in ("plan", "start", "answer")}
    ran = Ran(summary.run_id, took_s=took_s, samples=memory.samples(), **times)
    Path(order.told).write_text(json.dumps(asdict(ran)))
    return summary.exit_status or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
