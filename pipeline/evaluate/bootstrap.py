"""Intervals by resampling clips.

Questions about one clip stand or fall together, so clips are drawn, not questions; and both sides of
a comparison answer the same questions, so one draw serves both (a paired bootstrap).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

DRAWS = 2_000
LEVEL = 0.95
_SEED = 20_260


@dataclass(frozen=True)
class Estimate:
    """A number and its percentile interval; NaN where nothing was counted."""

    value: float
    low: float
    high: float


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
    """Σ numerator / Σ denominator over clips, both [C], with its interval at LEVEL.

    With counts of right answers of two methods it is the share that one keeps of the other's
    accuracy; with their difference over the questions asked, the difference in accuracy.
    """
    if numerator.shape != denominator.shape or numerator.ndim != 1:
        raise ValueError(f"expected two lists of one length, got {numerator.shape} and {denominator.shape}")
    if denominator.sum() == 0:
        return Estimate(np.nan, np.nan, np.nan)
    drawn = clip_draws(len(numerator)) @ np.stack([numerator, denominator], 1).astype(np.float64)
    drawn = drawn[drawn[:, 1] > 0]  # a rare kind of question may be missing from a draw
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(numerator.sum() / denominator.sum()), float(low), float(high))


@lru_cache(maxsize=8)
def clip_draws(clips: int) -> np.ndarray:
    """How often each clip is drawn: [DRAWS, clips] float64, the same for every call with as many clips."""
    rng = np.random.default_rng([_SEED, clips])
    return rng.multinomial(clips, np.full(clips, 1 / clips), size=DRAWS).astype(np.float64)
