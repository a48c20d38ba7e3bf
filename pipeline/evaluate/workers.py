"""Cells computed by several processes, each with the model and the clips loaded once.

On few cores and a small model, processes of one thread do more than one process of many threads.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pipeline.engine import VideoLLM
from pipeline.engine.info import DeviceName
from pipeline.engine.quantization import QuantizationName
from pipeline.errors import UserError
from pipeline.evaluate.cells import Cell, run_cell, write_records
from pipeline.evaluate.clips import ClipRange, EncodedClip, encode_clips, feature_folder, load_clip, missing_clips

_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class Setting:
    """Where the work is done: the model, the folders of rendered clips and finished cells, the form of its weights."""

    model: str
    device: DeviceName
    cache: Path
    cells: Path
    quantization: QuantizationName = "none"


@dataclass
class Bench:
    """A loaded model with the clips that it was asked about so far."""

    setting: Setting
    llm: VideoLLM
    _clips: dict[tuple[int, int], EncodedClip] = field(default_factory=dict)

    @property
    def features(self) -> Path:
        """The folder of this model's encoded clips."""
        return feature_folder(self.setting.cache, self.llm.info)

    def encode(self, seeds: Sequence[int]) -> float:
        """Encode clips into the cache; returns the seconds that it took."""
        started = time.perf_counter()
        encode_clips(self.llm, seeds, self.setting.cache, self.features)
        return time.perf_counter() - started

    def run(self, task: tuple[Cell, Path]) -> float:
        """Compute a cell into its file; returns the seconds that it took."""
        cell, file = task
        if file != cell.file(self.setting.cells, self.llm.info):
            raise UserError("the sources or the model have changed since the run began: start it again")
        clips = self.load(cell.clips)
        started = time.perf_counter()
        write_records(run_cell(self.llm, cell, clips), file)
        return time.perf_counter() - started

    def load(self, clips: ClipRange) -> list[EncodedClip]:
        """The encoded clips of a range, in order."""
        for seed in clips.seeds:
            if (seed, clips.questions) not in self._clips:
                self._clips[seed, clips.questions] = load_clip(seed, clips.questions, self.features)
        return [self._clips[seed, clips.questions] for seed in clips.seeds]


@dataclass(frozen=True)
class Step:
    """One finished piece of work: a cell or a group of encoded clips. `eta_s` is a guess for the rest."""

    done: int
    total: int
    name: str
    seconds: float
    eta_s: float


Report = Callable[[Step], None]


class Runner(AbstractContextManager["Runner"]):
    """Encodes clips and computes cells, in this process or in several others that live as long as the block."""

    def __init__(self, setting: Setting, llm: VideoLLM, workers: int, report: Report) -> None:
        """`llm` is the model of `setting`, loaded in this process: it does the work if `workers` is 1."""
        self.bench = Bench(setting, llm)
        self._workers = workers
        self._report = report
        self._pool: ProcessPoolExecutor | None = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End the other processes, once they have done what they are at."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def encode(self, clips: ClipRange) -> None:
        """Encode those clips that are not in the cache."""
        missing = missing_clips(clips.seeds, self.bench.features)
        groups = [missing[start : start + _ENCODED_AT_ONCE] for start in range(0, len(missing), _ENCODED_AT_ONCE)]
        self._follow("encode", groups, ["clips encoded"] * len(groups), [float(len(group)) for group in groups])

    def run(self, cells: Iterable[Cell]) -> dict[Cell, Path]:
        """Compute the cells that have no file yet, dear ones first; returns where the records of each lie.

        What is finished stays if the run is ended, by whatever.
        """
        files = {cell: cell.file(self.bench.setting.cells, self.bench.llm.info) for cell in cells}
        unique: dict[Path, Cell] = {}
        for cell, file in files.items():
            unique.setdefault(file, cell)
        todo = sorted(((c, f) for f, c in unique.items() if not f.exists()), key=lambda task: -cost(task[0]))
        names = [f"{cell.label} at {cell.budget.retention:.4g}" for cell, _ in todo]
        self._follow("run", todo, names, [cost(cell) for cell, _ in todo])
        return files

    def _follow(self, method: str, items: Sequence[Any], names: Sequence[str], costs: Sequence[float]) -> None:
        """Apply a method of the bench to each item, and report each with the time that the rest will take."""
        started, done_cost = time.perf_counter(), 0.0
        for done, (place, seconds) in enumerate(self._each(method, items), 1):
            done_cost += costs[place]
            eta_s = (time.perf_counter() - started) * (sum(costs) - done_cost) / done_cost
            self._report(Step(done, len(items), names[place], seconds, eta_s))

    def _each(self, method: str, items: Sequence[Any]) -> Iterator[tuple[int, float]]:
        """(place in the list, seconds) of each item, as they end."""
        if self._workers == 1 or len(items) == 1:
            yield from ((place, getattr(self.bench, method)(item)) for place, item in enumerate(items))
            return
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked torch hangs in its thread pool
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_start, initargs=(self.bench.setting,))
        futures: dict[Future[float], int] = {self._pool.submit(_apply, method, i): n for n, i in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.result()


def cost(cell: Cell) -> float:
    """About how long a cell takes, in any unit: prompts times tokens over all layers."""
    plan = cell.budget.plan
    share = sum(plan.attention_tokens()) / (plan.num_layers * plan.num_tokens) + 0.08  # text, and what is done once
    return share * (cell.clips.count * cell.clips.questions + 2 * cell.captions)


_bench: Bench | None = None


def _start(setting: Setting) -> None:
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all processes: one of them tells the user
    torch.set_num_threads(1)
    _bench = Bench(setting, VideoLLM.load(setting.model, device=setting.device, quantization=setting.quantization))


def _apply(method: str, item: Any) -> float:
    return getattr(_bench, method)(item)
