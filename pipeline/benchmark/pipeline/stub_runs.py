"""Runs whose stages sleep, over videos that are not there: how fast each stage is, is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.benchmark.pipeline.driver import Order, Stub, run
from pipeline.benchmark.pipeline.rate import finished_s, middle_rate
from pipeline.benchmark.pipeline.row import Row

NODES, CORES = 4, 4  # of the cluster: raylets, and what each of them tells to have
_ACTORS = 4  # of each stage
_BATCH_SIZE = 4


@dataclass(frozen=True)
class Balance:
    """How long the stages sleep: a video at a decoder, a row at an answerer."""

    setting: str
    decode_s: float
    answer_s: float

    @property
    def slowest_stage_rows_per_s(self) -> float:
        """A decoder decodes one video at a time, an answerer has a batch of rows in work."""
        return min(_ACTORS / self.decode_s, _ACTORS * _BATCH_SIZE / self.answer_s)


# 16 rows a second, the faster stage twice as fast. A row's own cost, some 30 ms of processor time, stays far below what
# two cores have: this is about whether the slowest stage always has work. Batches are small beside the run: what
# decoders are ahead when the first answers come would count as speed.
BALANCES = (Balance("stub, decode-bound", 0.25, 0.5), Balance("stub, answer-bound", 0.125, 1.0))


def measure_balance(balance: Balance, rows: int, address: str, folder: Path) -> Row:
    """One run of `rows` videos with a row each on the cluster at `address`, in a new `folder`."""
    given = stub_job(folder, rows, rows_per_video=1)
    given += (f"cluster.decoders={_ACTORS}", f"cluster.answerers={_ACTORS}")
    given += (f"cluster.batch_size={_BATCH_SIZE}",)
    order = Order("qa", given, str(folder / "told.json"), Stub(balance.decode_s, balance.answer_s))
    ran = run(order, address)
    rate = middle_rate(finished_s(str(folder / "out")))
    return Row.measured(balance.setting, rows, rate, balance.slowest_stage_rows_per_s, ran.peak_mb)


def measure_cost(setting: str, rows: int, rows_per_video: int, folder: Path) -> Row:
    """One run of `rows` rows whose stages do nothing, on two cores, in a new `folder`: what a row costs by itself."""
    given = stub_job(folder, rows, rows_per_video)
    ran = run(Order("qa", given, str(folder / "told.json"), Stub(0.0, 0.0), cores=2))
    return Row.measured(setting, rows, middle_rate(finished_s(str(folder / "out"))), None, ran.peak_mb)


def stub_job(folder: Path, rows: int, rows_per_video: int) -> tuple[str, ...]:
    """Write a manifest of `rows` questions into a new `folder`; the settings of a job that reads it."""
    folder.mkdir(parents=True)
    manifest = folder / "manifest.jsonl"
    with manifest.open("w") as file:
        for row in range(rows):
            file.write(json.dumps({"uri": f"/stub/{row // rows_per_video}.mp4", "question": f"question {row}"}) + "\n")
    return (f"manifest={manifest}", f"output={folder / 'out'}")
