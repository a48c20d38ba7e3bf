"""Every case in turn, again and again, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.benchmark.engine.batch_search import best_batch
from pipeline.benchmark.engine.dense import Dense
from pipeline.benchmark.engine.measurement import Measurement, Row, make_row
from pipeline.benchmark.engine.ours import SYSTEM, Engine, Preset
from pipeline.benchmark.engine.subject import Subject
from pipeline.benchmark.engine.video import make_video

_SEGMENTS = (1, 4, 16)


class OptionsError(ValueError):
    """Options that the model or the video cannot serve; one line."""


@dataclass(frozen=True)
class Options:
    """What to measure. `batch` requests are also answered together, at the largest retention below 1 and the
    middle number of segments; `dense_batch` is transformers' own best batch (None: it is searched for).
    """

    frames: int
    repeats: int
    retentions: tuple[float, ...]
    segments: tuple[int, ...]
    new_tokens: tuple[int, ...]
    batch: int = 8
    dense_batch: int | None = None
    preset: Preset = None

    @classmethod
    def for_subject(
        cls, subject: Subject, frames: int | None, segments: tuple[int, ...] | None, **others: Any
    ) -> Options:
        """With the shape's own number of frames, and as many of 1, 4 and 16 segments as these can show, for None.

        Raises OptionsError for numbers out of range.
        """
        frames = frames or subject.shape.frames
        most = frames // subject.family.frames_per_step
        options = cls(frames=frames, segments=segments or tuple(s for s in _SEGMENTS if s <= most), **others)
        if not options.segments or not all(1 <= s <= most for s in options.segments):
            raise OptionsError(f"{frames} frames of this model show 1 to {most} segments")
        if not all(0 < r <= 1 for r in options.retentions):
            raise OptionsError("a retention is above 0 and at most 1")
        if not all(n >= 1 for n in options.new_tokens):
            raise OptionsError("at least 1 new token is needed")
        return options.without_repeats()

    def without_repeats(self) -> Options:
        """Each value once, in the order in which it first comes."""
        return replace(
            self,
            retentions=tuple(dict.fromkeys(self.retentions)),
            segments=tuple(dict.fromkeys(self.segments)),
            new_tokens=tuple(dict.fromkeys(self.new_tokens)),
        )


@dataclass(frozen=True)
class Case:
    """One row to be: `segments` are the scenes of the videos shown, to transformers all the same."""

    system: str
    retention: float
    segments: int
    batch: int
    new_tokens: int

    def __str__(self) -> str:
        """As progress is shown."""
        what = f"{self.segments} segments, batch {self.batch}, {self.new_tokens} new tokens"
        return f"{self.system} at {self.retention:.0%}, {what}"


class Bench:
    """Both sides on one subject, and the videos that they are shown."""

    def __init__(self, subject: Subject, options: Options, say: Callable[[str], None]) -> None:
        """`say` is told what is being measured."""
        self._subject = subject
        self._options = options
        self._say = say
        self._dense = Dense(subject)
        self._engine = Engine(subject, options.preset)
        self._videos: dict[tuple[int, int], np.ndarray] = {}

    def rows(self) -> list[Row]:
        """Warm up, find transformers' best batches, then measure every case once a repeat."""
        cases = self._dense_cases() + self._engine_cases()
        self._warm_up(cases)
        if self._options.dense_batch is None:
            cases += [best for best in map(self._best, self._dense_cases()) if best.batch > 1]
        runs: dict[Case, list[Measurement]] = {case: [] for case in sorted(cases, key=_place)}
        for repeat in range(self._options.repeats):
            for case in runs:
                self._say(f"{repeat + 1} of {self._options.repeats}: {case}")
                runs[case].append(self.measure(case))
        decoder = self._subject.family.decoder
        weights, itemsize = self._subject.read_bytes(), decoder.dtype.itemsize
        return [
            make_row(
                case.system,
                case.retention,
                measured,
                decoder.shape,
                weights,
                itemsize,
                is_last_layer_cut=case.system == SYSTEM,
            )
            for case, measured in runs.items()
        ]

    def measure(self, case: Case) -> Measurement:
        """One run of a case."""
        videos = [self._video(case.segments, number) for number in range(case.batch)]
        if case.system == SYSTEM:
            return self._engine(videos, case.retention, case.new_tokens)
        return self._dense(videos, case.new_tokens)

    def _dense_cases(self) -> list[Case]:
        """Transformers one by one, and at its best batch where that is known."""
        options = self._options
        return [
            Case(self._dense.system, 1.0, options.segments[0], batch, new_tokens)
            for new_tokens in options.new_tokens
            for batch in sorted({1, options.dense_batch or 1})
        ]

    def _engine_cases(self) -> list[Case]:
        """The engine over the grid one by one, and batched."""
        options = self._options
        grid = [
            Case(SYSTEM, retention, segments, 1, new_tokens)
            for new_tokens in options.new_tokens
            for retention in options.retentions
            for segments in options.segments
        ]
        pruned = max((r for r in options.retentions if r < 1), default=1.0)
        middle = options.segments[len(options.segments) // 2]
        together = [Case(SYSTEM, pruned, middle, options.batch, new_tokens) for new_tokens in options.new_tokens]
        return grid + together if options.batch > 1 else grid

    def _best(self, alone: Case) -> Case:
        """A case of transformers' at the batch that serves it best."""

        def measure(batch: int) -> Measurement:
            case = replace(alone, batch=batch)
            self._say(f"looking for its best batch: {case}")
            return self.measure(case)

        return replace(alone, batch=best_batch(measure, self._subject.device))

    def _warm_up(self, cases: list[Case]) -> None:
        """All cases once on a GPU, where kernels are compiled and chosen; else each side once, for few tokens."""
        if self._subject.device.type != "cuda":
            few = min(self._options.retentions)
            cases = [Case(self._dense.system, 1.0, 1, 1, 2), Case(SYSTEM, few, 1, 1, 2)]
        for case in cases:
            self._say(f"warming up: {case}")
            self.measure(case)

    def _video(self, segments: int, number: int) -> np.ndarray:
        """The `number`-th video of that many scenes, made once."""
        key = (segments, number)
        if key not in self._videos:
            step = self._subject.family.frames_per_step
            self._videos[key] = make_video(
                self._options.frames, segments, self._subject.shape.frame_size, seed=number, step=step
            )
        return self._videos[key]


def _place(case: Case) -> tuple[int, bool]:
    """Rows are ordered by what is generated, transformers first; else as they come."""
    return case.new_tokens, case.system == SYSTEM
