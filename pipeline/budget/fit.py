"""What the phases of a model take, fitted to rows that were answered."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.budget.profile import Profile
from pipeline.budget.workload import done_flops
from pruning import Pruner, StagePlan
from pruning.cost import DecoderShape

FACTS = ("model", "model_hash", "dtype", "device", "quantization", "pruning_method")
"""What a profile holds for, as columns of results are called, too."""
_LEVEL = math.log(1.1)  # retentions that differ by less count as one


@dataclass(frozen=True)
class TimedRow:
    """An answered row, and the seconds of its phases.

    Of what the rows of a video share, frames too, it has its share. `done_flops` are those that were computed for it.
    """

    retention: float
    frames: float
    video_tokens: int
    output_tokens: int
    done_flops: float
    vision_s: float
    prune_s: float
    prefill_s: float
    generate_s: float


def timed_row(told: Mapping[str, Any], frames: int, together: int, shape: DecoderShape, pruner: Pruner) -> TimedRow:
    """Of what an answer's statistics or its result row tell: `together` rows were answered of a video of `frames`."""
    plan = StagePlan(told["video_tokens"], shape.layers, tuple(told["stage_layers"]), tuple(told["stage_tokens"]))
    return TimedRow(
        retention=told["retention_requested"],
        frames=frames / together,
        video_tokens=told["video_tokens"],
        output_tokens=told["output_tokens"],
        done_flops=done_flops(plan, told["prompt_tokens"], together, shape, pruner),
        vision_s=told["vision_ms"] / 1e3,
        prune_s=told["prune_ms"] / 1e3,
        prefill_s=told["prefill_ms"] / 1e3,
        generate_s=told["generate_ms"] / 1e3,
    )


def fit_profile(
    rows: Sequence[TimedRow], facts: Mapping[str, str], machine: str, threads: int, batch_size: int, videos: int
) -> Profile:
    """The profile of a model from its `rows`, at least one, that were answered on a machine.

    `facts` are the fields that result rows tell as well (`FACTS`), the others those of a profile. What a row takes
    besides its FLOPs, and how pruning depends on what it keeps, can only be told from rows of several retentions: with
    one, all of prefill counts as FLOPs and all of pruning as kept tokens.
    """
    levels: defaultdict[int, list[TimedRow]] = defaultdict(list)
    for row in rows:
        levels[round(math.log(row.retention) / _LEVEL)].append(row)
    prefill = [(_mean(level, "done_flops"), _mean(level, "prefill_s"), len(level)) for level in levels.values()]
    pruned = [level for level in levels.values() if level[0].retention < 1]
    prune = [(_mean(level, "retention"), _ratio(level, "prune_s", "video_tokens"), len(level)) for level in pruned]
    per_row, per_flop = fit_line(*_columns(prefill))
    per_token, per_kept_token = fit_line(*_columns(prune))
    return Profile(
        **{name: facts[name] for name in FACTS},
        machine=machine,
        threads=threads,
        batch_size=batch_size,
        videos=videos,
        vision_s_per_frame=_ratio(rows, "vision_s", "frames"),
        prefill_s_per_row=per_row,
        prefill_s_per_flop=per_flop,
        prune_s_per_token=per_token,
        prune_s_per_kept_token=per_kept_token,
        generate_s_per_token=_ratio(rows, "generate_s", "output_tokens"),
        output_tokens=_mean(rows, "output_tokens"),
    )


def fit_line(x: Sequence[float], y: Sequence[float], counts: Sequence[int] | None = None) -> tuple[float, float]:
    """A constant and a slope, neither below 0, by least squares of the relative errors; one x gives a slope alone.

    A point counts as often as `counts` says, once without.
    """
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    if not len(xs) or not ys.any():
        return 0.0, 0.0
    weights = np.sqrt(np.ones_like(ys) if counts is None else np.asarray(counts, float))
    weights /= np.maximum(ys, ys.max() * 1e-3)
    slope_alone = 0.0, float((weights**2 * xs * ys).sum() / (weights**2 * xs * xs).sum())
    if np.ptp(xs) == 0:
        return slope_alone
    scale = xs.max()
    design = np.stack([np.ones_like(xs), xs / scale], axis=1) * weights[:, None]
    constant, slope = (float(number) for number in np.linalg.lstsq(design, ys * weights, rcond=None)[0])
    if constant < 0:
        return slope_alone
    if slope < 0:
        return float((weights**2 * ys).sum() / (weights**2).sum()), 0.0
    return constant, slope / scale


def _columns(points: Sequence[tuple[float, float, int]]) -> tuple[list[float], list[float], list[int]]:
    return [x for x, _, _ in points], [y for _, y, _ in points], [count for _, _, count in points]


def _mean(rows: Sequence[TimedRow], field: str) -> float:
    return sum(getattr(row, field) for row in rows) / len(rows)


def _ratio(rows: Sequence[TimedRow], part: str, whole: str) -> float:
    total = sum(getattr(row, whole) for row in rows)
    return sum(getattr(row, part) for row in rows) / total if total else 0.0
