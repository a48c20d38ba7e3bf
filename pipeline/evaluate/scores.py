"""A cell's records, summed per clip: what tables and intervals are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline.evaluate.bootstrap import Estimate, ratio
from pipeline.evaluate.cells import CAPTION

COSTS = ("retention_achieved", "flops_ratio", "kv_ratio", "prune_ms", "prefill_ms")


@dataclass(frozen=True)
class Tally:
    """Questions asked and answered right, of each clip: [C] int64."""

    asked: np.ndarray
    right: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of the questions answered right; NaN without any."""
        return float(self.right.sum() / self.asked.sum()) if self.asked.sum() else float("nan")

    def first(self, clips: int) -> Tally:
        """The tally of the first clips alone."""
        return Tally(self.asked[:clips], self.right[:clips])


@dataclass(frozen=True)
class Scores:
    """What a cell says: tallies over all questions and by kind, mean costs of a question, captions.

    `seeds` [C] names the clips, in the order of the tallies. `caption_score` is the mean F1 of
    `captions` captions, None without any.
    """

    seeds: np.ndarray
    prompts: tuple[str, ...]
    total: Tally
    kinds: dict[str, Tally]
    costs: dict[str, float]
    caption_score: float | None
    captions: int

    def share_of(self, whole: Scores, kind: str | None = None) -> Estimate:
        """Accuracy over that of `whole` on the same questions, of one kind or all."""
        mine, theirs = self._paired(whole, kind)
        return ratio(mine.right, theirs.right)

    def minus(self, other: Scores, kind: str | None = None) -> Estimate:
        """Accuracy minus that of `other` on the questions that both were asked."""
        mine, theirs = self._paired(other, kind)
        return ratio(mine.right - theirs.right, mine.asked)

    def _paired(self, other: Scores, kind: str | None) -> tuple[Tally, Tally]:
        """Both tallies on the clips that both have; ValueError if these are not the same questions."""
        clips = min(len(self.seeds), len(other.seeds))
        mine = (self.total if kind is None else self.kinds[kind]).first(clips)
        theirs = (other.total if kind is None else other.kinds[kind]).first(clips)
        asked = min(len(self.prompts), len(other.prompts))
        if not np.array_equal(self.seeds[:clips], other.seeds[:clips]) or self.prompts[:asked] != other.prompts[:asked]:
            raise ValueError("only cells that were asked the same questions can be compared")
        return mine, theirs


def read_scores(path: Path) -> Scores:
    """Sum up the records that a cell wrote."""
    table = pq.read_table(path).to_pydict()
    kinds = np.array(table["kind"])
    questions = kinds != CAPTION
    seeds, clip = np.unique(np.array(table["seed"])[questions], return_inverse=True)
    right = np.array(table["score"])[questions].astype(np.int64)
    asked_kinds = kinds[questions]

    def tally(chosen: np.ndarray) -> Tally:
        return Tally(
            np.bincount(clip[chosen], minlength=len(seeds)),
            np.bincount(clip[chosen], right[chosen], len(seeds)).astype(np.int64),
        )

    captions = np.array(table["score"])[~questions]
    return Scores(
        seeds=seeds,
        prompts=tuple(p for p, is_question in zip(table["prompt"], questions, strict=True) if is_question),
        total=tally(np.ones(len(clip), bool)),
        kinds={str(kind): tally(asked_kinds == kind) for kind in np.unique(asked_kinds)},
        costs={name: float(np.array(table[name])[questions].mean()) for name in COSTS},
        caption_score=float(captions.mean()) if len(captions) else None,
        captions=len(captions),
    )
