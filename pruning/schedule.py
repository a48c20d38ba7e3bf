"""How many video tokens live in each stage, fixed at admission (HieraVid, Level 3).

A stage plan follows from (N, L, r) alone, so memory and packing can be planned before a video's
tokens exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pruning.protocol import StagePlan, VideoGrid

NUM_STAGES = 4

# Kept share per stage in the authors' runs. Each table stands at its true mean over the layers
# (its runs' names say 10, 20 and 30 %), so that asking for that mean gives back exactly the table.
_AUTHOR_TABLES: tuple[tuple[float, tuple[float, ...]], ...] = (
    (0.10995, (0.30, 0.12, 0.018, 0.0018)),
    (0.21, (0.50, 0.25, 0.075, 0.015)),
    (0.30, (0.50, 0.35, 0.245, 0.105)),
    (1.00, (1.0, 1.0, 1.0, 1.0)),
)


def author_shape(retention: float) -> tuple[float, ...]:
    """The authors' tables, interpolated linearly in their true mean; below the smallest, that one.

    Towards r = 1 they open evenly to "keep all". Raises ValueError for a retention outside (0, 1].
    """
    check_retention(retention)
    low_mean, low = _AUTHOR_TABLES[0]
    if retention <= low_mean:
        return low
    for high_mean, high in _AUTHOR_TABLES[1:]:
        if retention <= high_mean:
            break
        low_mean, low = high_mean, high
    part = (retention - low_mean) / (high_mean - low_mean)
    return tuple(a + part * (b - a) for a, b in zip(low, high, strict=True))


def geometric_shape(gamma: float) -> tuple[float, ...]:
    """Shares that fall by the factor `gamma` in (0, 1] from stage to stage."""
    return tuple(gamma**s for s in range(NUM_STAGES))


def stages(num_layers: int) -> list[tuple[int, int]]:
    """(stage, first layer) at layers floor(s·L/4); of stages on the same layer the first one stays."""
    if num_layers < 1:
        raise ValueError(f"a decoder has at least 1 layer, got {num_layers}")
    starts: dict[int, int] = {}
    for s in range(NUM_STAGES):
        starts.setdefault(s * num_layers // NUM_STAGES, s)
    return [(s, layer) for layer, s in starts.items()]


def stage_shares(shape: Sequence[float], lengths: Sequence[int], retention: float, floor: float = 0.0) -> list[float]:
    """Kept share ρ of each stage, so that its mean over the layers is `retention`.

    `shape` is u_s (positive, non-increasing) and `lengths` the layers of each stage:
    ρ_s = max(min(c·u_s, 1), floor), with c by bisection so that Σ lengths_s·ρ_s = r·L. `floor`
    is 1/N where shares become counts of at least 1: what the floors add, the other stages give up.
    Where even the floors exceed r, all shares are the floor.
    """
    low, high = 0.0, 1.0 / min(shape)
    target = retention * sum(lengths)
    for _ in range(64):
        c = (low + high) / 2
        total = sum(n * max(min(c * u, 1.0), floor) for n, u in zip(lengths, shape, strict=True))
        low, high = (c, high) if total < target else (low, c)
    return [max(min(high * u, 1.0), floor) for u in shape]


def round_counts(wanted: Sequence[float], lengths: Sequence[int]) -> list[int]:
    """Non-increasing integers near the non-increasing `wanted`, rounding carried forward.

    Each is the floor or the ceiling of what is wanted (or one more, where a carry falls on a whole
    number), and |Σ lengths·(counts − wanted)| ≤ max(lengths) / 2.
    """
    counts: list[int] = []
    carry = 0.0  # layer·tokens owed to the stages still to come
    for s, (want, length) in enumerate(zip(wanted, lengths, strict=True)):
        whole = math.floor(want)
        # Stages with the same whole part share their fractions and the earliest rounds up first:
        # if each rounded alone, a later one could not rise above an earlier one that rounded down.
        pooled = carry + sum(
            n * (w - whole) for w, n in zip(wanted[s:], lengths[s:], strict=True) if math.floor(w) == whole
        )
        count = whole + 1 if pooled >= length / 2 else whole
        counts.append(min(count, counts[-1]) if counts else count)
        carry += length * (want - counts[-1])
    return counts


def plan_stages(num_tokens: int, num_layers: int, retention: float, shape: Sequence[float]) -> StagePlan:
    """The stage plan of a video of N = `num_tokens` tokens at a mean-over-layers `retention`.

    `shape` has NUM_STAGES entries. For K_s the counts and layers_s the layers of stage s:
    1 ≤ K_s ≤ N, non-increasing, and |Σ layers_s·K_s − r·L·N| ≤ max layers_s unless every count
    stands at its floor of 1 (r·N < 1). r = 1 keeps N everywhere.
    Raises ValueError outside these ranges.
    """
    check_retention(retention)
    if num_tokens < 1:
        raise ValueError(f"a video has at least 1 token, got {num_tokens}")
    indices, layers = zip(*stages(num_layers), strict=True)
    if retention == 1:
        return StagePlan(num_tokens, num_layers, layers, (num_tokens,) * len(layers))
    lengths = [end - start for start, end in zip(layers, (*layers[1:], num_layers), strict=True)]
    shares = stage_shares([shape[s] for s in indices], lengths, retention, floor=1 / num_tokens)
    # Whole numbers must not fall below themselves by the bisection's last bit.
    wanted = [round(share * num_tokens, 6) for share in shares]
    return StagePlan(num_tokens, num_layers, layers, tuple(round_counts(wanted, lengths)))


def plan_input_only(grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
    """The single-stage plan of a method that acts at the input: round(r·N), at least 1, for all layers."""
    check_retention(retention)
    return StagePlan(grid.tokens, num_layers, (0,), (max(1, math.floor(retention * grid.tokens + 0.5)),))


def check_retention(retention: float) -> None:
    """Raise ValueError unless `retention` is in (0, 1]."""
    if not 0 < retention <= 1:
        raise ValueError(f"retention must be in (0, 1], got {retention}")
