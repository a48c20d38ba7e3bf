"""A job over many questions whose stages do nothing but write down what they did."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds

from pipeline.benchmark.pipeline.driver import Order, Ran, Stub, finish, start
from pipeline.benchmark.pipeline.stub_runs import stub_job


class Archive:
    """`rows` questions, ten about each video. Its drivers run on two cores, each on a cluster of its own."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.rows = rows
        self.output = folder / "out"
        self._journal = folder / "journal"
        self._orders: dict[subprocess.Popen, Order] = {}
        self._folder = folder
        self._given = stub_job(folder, rows, rows_per_video=10)

    def start(self) -> subprocess.Popen:
        """Start the job, or continue it."""
        told = str(self._folder / f"told-{len(self._orders)}.json")
        order = Order("qa", self._given, told, Stub(0.0, 0.0, str(self._journal)), cores=2)
        driver = start(order)
        self._orders[driver] = order
        return driver

    def finish(self, driver: subprocess.Popen) -> Ran:
        return finish(self._orders[driver], driver)

    def wait_until_committed(self, driver: subprocess.Popen, files: int) -> None:
        """Until there are so many result files."""
        while len(self._files()) < files:
            assert driver.poll() is None, "it ended before"
            time.sleep(0.05)

    def end(self) -> None:
        """Kill what still runs."""
        for driver in self._orders:
            driver.kill()
            driver.wait()

    def done(self) -> Counter[str]:
        """What stages have done: the uri of each video that was decoded, each question that was answered."""
        return Counter(self._journal.read_text().splitlines())

    def committed(self) -> Counter[str]:
        """The questions that have a result, and the videos that they are about."""
        if not (files := self._files()):
            return Counter()
        rows = ds.dataset(files).to_table(columns=["prompt", "uri"])
        return Counter(rows["prompt"].to_pylist()) + Counter(dict.fromkeys(rows["uri"].to_pylist(), 1))

    def check(self) -> None:
        """Each question has one result."""
        rows = ds.dataset(self._files()).to_table(columns=["prompt", "status", "item_id"])
        assert sorted(rows["prompt"].to_pylist()) == sorted(f"question {row}" for row in range(self.rows))
        assert set(rows["status"].to_pylist()) == {"ok"}
        assert len(set(rows["item_id"].to_pylist())) == self.rows

    def _files(self) -> list[str]:
        return [str(path) for path in (self.output / "results").rglob("*.parquet")]
