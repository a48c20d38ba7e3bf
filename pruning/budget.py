"""How many tokens each segment of a video may keep (HieraVid, Level 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

SCORE_WEIGHT = 0.1
LEAST_SHARE, MOST_SHARE = 0.05, 0.95


def split_budget(
    lengths: Sequence[int], total: int, values: Sequence[float], scores: Sequence[float], exact: bool
) -> list[int]:
    """Split `total` kept tokens over the segments of a video; the counts add up to it exactly.

    `lengths` are the live tokens n_i, `values` v_i and `scores` z_i of the S segments, and
    0 ≤ total ≤ Σ n_i. Segment i keeps the share q_i = clip(κ' + 0.1·z_i, 0.05, 0.95), the bounds
    widened to contain the stage's κ = total / Σ n_i. `exact` solves for κ' so that Σ q_i·n_i = total;
    otherwise κ' = κ and the shares are scaled to it. Fractions go by largest remainder. A segment
    with live tokens keeps at least one, unless there are fewer tokens than such segments: then those
    of lowest value keep none (ties: the later one).
    """
    live = [i for i, n in enumerate(lengths) if n > 0]
    if total <= len(live):
        best = set(sorted(live, key=lambda i: (-values[i], i))[:total])
        return [int(i in best) for i in range(len(lengths))]
    wanted = _wanted([lengths[i] for i in live], total, [scores[i] for i in live], exact)
    counts = [0] * len(lengths)
    for i, count in zip(live, apportion(wanted, total, [lengths[i] for i in live]), strict=True):
        counts[i] = count
    return counts


def apportion(wanted: Sequence[float], total: int, most: Sequence[int]) -> list[int]:
    """Integers near `wanted` that add up to `total`, each from 1 to its `most` (largest remainder).

    Ties go to the first. Raises ValueError if no such integers exist.
    """
    if not len(wanted) <= total <= sum(most):
        raise ValueError(f"{total} tokens do not fit {len(wanted)} segments of {sum(most)} tokens")
    # 1e-9 keeps the bisection's last bits from deciding what is whole and what is a tie.
    counts = [min(max(math.floor(w + 1e-9), 1), n) for w, n in zip(wanted, most, strict=True)]
    order = range(len(counts))
    while (spare := total - sum(counts)) != 0:
        step = 1 if spare > 0 else -1
        room = [i for i in order if (counts[i] < most[i] if spare > 0 else counts[i] > 1)]
        room.sort(key=lambda i: (-step * round(wanted[i] - counts[i], 9), step * i))
        for i in room[: abs(spare)]:
            counts[i] += step
    return counts


def _wanted(lengths: Sequence[int], total: int, scores: Sequence[float], exact: bool) -> list[float]:
    """q_i·n_i of each segment, adding up to `total`."""
    share = total / sum(lengths)
    low, high = min(LEAST_SHARE, share), max(MOST_SHARE, share)

    def at(base: float) -> list[float]:
        return [n * min(max(base + SCORE_WEIGHT * z, low), high) for n, z in zip(lengths, scores, strict=True)]

    if not exact:
        wanted = at(share)
        scale = total / sum(wanted)
        return [scale * w for w in wanted]
    if not any(scores):
        return at(share)
    least, most = low - SCORE_WEIGHT * max(scores), high - SCORE_WEIGHT * min(scores)
    for _ in range(50):
        base = (least + most) / 2
        least, most = (base, most) if sum(at(base)) < total else (least, base)
    return at(most)
