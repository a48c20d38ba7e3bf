"""A job's driver in a process of its own, that a test can watch and kill; and the program that it runs.

`python -m tests.faults.driver JOURNAL SECONDS [key.path=value …]` runs a job whose model is a
JournalEngine. Each line of its stdout is a moment of the run, `phase rows failed total`; its exit
status is that of the jobs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.config_load import load_config
from pipeline.errors import ClusterError, UserError
from pipeline.progress import Progress
from tests.faults.engine import INFO, JournalEngine


class Driver:
    """A job that has been started. `status` is None as long as it runs."""

    def __init__(self, folder: Path, journal: Path, seconds: float, given: Sequence[str], **environment: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = folder / "stdout", folder / "stderr"
        command = [sys.executable, "-m", "tests.faults.driver", str(journal), str(seconds), *given]
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdout=stdout,
                stderr=stderr,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "TMPDIR": str(folder), **environment},
            )

    @property
    def status(self) -> int | None:
        return self._process.poll()

    @property
    def moments(self) -> list[tuple[str, int, int, int]]:
        """Phase, rows, failed and total of each moment told so far."""
        told = [line.split() for line in self._stdout.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [(phase, int(rows), int(failed), int(total)) for phase, rows, failed, total in told]

    @property
    def error(self) -> str:
        return self._stderr.read_text()

    def wait_until(self, phase: str, rows: int = 0, timeout_s: float = 180) -> None:
        """Until the job has told of this phase with so many rows. AssertionError if it ends before."""
        deadline = time.monotonic() + timeout_s
        while not any(told[0] == phase and told[1] >= rows for told in self.moments):
            assert self.status is None, f"ended with {self.status}: {self.moments[-1:]} {self.error[-2000:]}"
            assert time.monotonic() < deadline, f"no {phase} {rows} in {timeout_s} s: {self.moments[-1:]}"
            time.sleep(0.1)

    def finish(self, timeout_s: float = 240) -> int:
        """The exit status."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end: {self.moments[-1:]} {self.error[-2000:]}") from None

    def send(self, number: signal.Signals) -> None:
        """Send the driver a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: nothing of it can clean up."""
        self._process.kill()
        self._process.wait()


def main(journal: str, seconds: str, *given: str) -> int:
    from pipeline import run
    from pipeline.model_load import JobModel

    def tell(now: Progress) -> None:
        print(now.phase, now.rows, now.failed, now.total, flush=True)

    run.find_model = lambda settings, _: JobModel(settings, None, INFO)  # a real one takes seconds of each start
    load = partial(JournalEngine, journal=journal, seconds=float(seconds))
    try:
        return run.run_job(load_config(None, list(given), "qa"), tell, load).exit_status
    except (UserError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 3


if __name__ == "__main__":
    # Workers must find the engine under the name that the tests give it, not in `__main__`.
    sys.exit(main(*sys.argv[1:]))
