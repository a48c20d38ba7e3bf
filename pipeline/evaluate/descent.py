"""Coordinate descent over HieraVid's options: one after the other, kept only where the gain is beyond noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import numpy as np

Options = dict[str, Any]
Score = Callable[[Options], np.ndarray]
"""Scores [R, V] of options at each retention on each video, higher is better, the same videos each time."""

CERTAINTY = 2.0
"""How many standard errors of the paired difference a change must gain: one chance in forty where there is none.

With some forty candidates one such may slip in, and costs next to nothing; a stricter rule would refuse real gains.
"""
PASSES = 2


@dataclass(frozen=True)
class Coordinate:
    """Options that are chosen together, and what is tried for them besides what they are."""

    name: str
    candidates: tuple[Options, ...]


def _each(name: str, values: Sequence[Any], **others: Any) -> list[Options]:
    return [{name: value, **others} for value in values]


_SHAPES: tuple[Options, ...] = ({"shape": "author"}, *_each("gamma", (0.4, 0.5, 0.6, 0.8, 1.0), shape="geometric"))

# In the order of how much they decide: how many tokens each stage has and how those leave that leave at the
# input, how many are selected together (a kernel's rank is at most the width of the model, and diversity
# says nothing beyond it), where segments begin, and which tokens the later stages prefer. Schedule and merge share
# are one coordinate, since the fewer tokens pass the input, the less of the rest is left to merge.
COORDINATES: tuple[Coordinate, ...] = (
    Coordinate(
        "schedule, merge share",
        tuple({**shape, "merge_share": share} for shape in _SHAPES for share in (0.5, 0.75, 1.0)),
    ),
    Coordinate("block", tuple(_each("max_block", (36, 72, 144, 1024)))),
    Coordinate(
        "segments",
        (*_each("beta", (0.0, 0.2, 0.4, 0.6, 0.8), segments=None), *_each("segments", (4, 8, 16))),
    ),
    Coordinate("merging across segments", tuple(_each("merge_across_segments", (False, True)))),
    Coordinate("similarity threshold", tuple(_each("tau", (0.5, 0.6, 0.7, 0.8, 0.9)))),
    Coordinate(
        "relevance",
        tuple(
            {"relevance_sign": sign, "relevance_transform": transform}
            for sign in ("negative", "positive")
            for transform in ("minmax", "rank", "exp")
        ),
    ),
)


@dataclass(frozen=True)
class Trial:
    """One candidate against what was best before it.

    `scores` [R] are means over the videos; `gain` is the mean paired difference over videos and
    retentions, `error` its standard error over the videos.
    """

    coordinate: str
    options: Options
    scores: tuple[float, ...]
    gain: float
    error: float

    @property
    def is_better(self) -> bool:
        """Whether the gain is beyond noise."""
        return self.gain > CERTAINTY * self.error and self.gain > 0


@dataclass(frozen=True)
class Step:
    """One coordinate tried out: all trials, and the one that was kept if any was."""

    coordinate: str
    trials: tuple[Trial, ...]
    kept: Trial | None


def descend(
    start: Options,
    score: Score,
    coordinates: Sequence[Coordinate] = COORDINATES,
    passes: int = PASSES,
    report: Callable[[Trial], None] = lambda _: None,
) -> tuple[Options, list[Step]]:
    """Improve `start` (all options that are to be chosen) one coordinate at a time.

    Of a coordinate's candidates the one of largest gain is kept if that gain is more than CERTAINTY standard errors
    of the paired difference. Further passes over the coordinates see what the later choices changed; the
    descent ends where all others have been tried since the last change. Options are scored once.
    """
    known: dict[str, np.ndarray] = {}

    def scored(options: Options) -> np.ndarray:
        name = json.dumps(effective(options), sort_keys=True)
        if name not in known:
            known[name] = score(options)
        return known[name]

    best, steps = dict(start), []
    settled = 0  # coordinates in a row that are known to be best as things stand
    for coordinate in chain.from_iterable(repeat(coordinates, passes)):
        if settled == len(coordinates):
            break
        trials = []
        for candidate in _others(best, coordinate.candidates):
            trials.append(compare(coordinate.name, candidate, scored(best), scored({**best, **candidate})))
            report(trials[-1])
        better = [trial for trial in trials if trial.is_better]
        kept = max(better, key=lambda trial: trial.gain, default=None)
        steps.append(Step(coordinate.name, tuple(trials), kept))
        if kept is not None:
            best |= kept.options
        settled = settled + 1 if kept is None else 1
    return best, steps


def compare(name: str, options: Options, before: np.ndarray, after: np.ndarray) -> Trial:
    """The paired comparison of scores [R, V]; every retention weighs the same."""
    difference = (after - before).mean(0)
    error = float(difference.std(ddof=1) / len(difference) ** 0.5) if len(difference) > 1 else float("inf")
    return Trial(name, options, tuple(after.mean(1).tolist()), float(difference.mean()), error)


def _others(best: Options, candidates: Sequence[Options]) -> Iterator[Options]:
    """Candidates that change something."""
    for candidate in candidates:
        if effective({**best, **candidate}) != effective(best):
            yield candidate


def effective(options: Mapping[str, Any]) -> Options:
    """Those of the chosen options that have a say in what is kept."""
    silent = set()
    if options["shape"] == "author":
        silent.add("gamma")
    if options["segments"] is not None:
        silent.add("beta")
    elif options["beta"] == 0:  # no frame repeats less than nothing: one segment
        silent |= {"tau", "merge_across_segments"}
    if options["merge_share"] == 0:
        silent.add("merge_across_segments")
    return {name: value for name, value in options.items() if name not in silent}
