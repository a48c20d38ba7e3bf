"""One timed run of either side, and the row that several runs of the same case make."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pruning import StagePlan
from pruning.cost import DecoderShape, prefill_flops


@dataclass(frozen=True)
class Measurement:
    """One run over a batch of videos. Times are milliseconds of the whole batch, as counted by each side.

    `plans` are the videos' token counts, `segments` what the pruner found in each (None: it did not
    look); `token_ids` the generated tokens of each.
    """

    token_ids: list[list[int]]
    plans: list[StagePlan]
    segments: list[int | None]
    text_tokens: int
    vision_ms: float
    prune_ms: float | None
    prefill_ms: float
    decode_ms: float
    total_ms: float
    peak_mb: float | None

    @property
    def decode_steps(self) -> int:
        """The first token comes from the prefill."""
        return len(self.token_ids[0]) - 1


@dataclass(frozen=True)
class Row:
    """Medians of the runs of one case; null is "not measured".

    Milliseconds, tokens and TFLOP/s are those of the whole batch. `total_ms` is wall time, frames to
    tokens. `flops_ratio` is exact, pruned over unpruned prefill of the language model;
    `achieved_tflops` these FLOPs by `prefill_ms`, `achieved_gbs` the bytes of weights and cache that
    decoding has to read, by its time. `peak_mb` is the largest memory in use, weights included: what
    torch had allocated on a GPU, the process's resident memory on a CPU (MiB).
    """

    system: str
    retention: float
    segments: int | None
    batch: int
    new_tokens: int
    vision_ms: float
    prune_ms: float | None
    prefill_ms: float
    decode_ms: float
    total_ms: float
    decode_tokens_per_s: float | None
    flops_ratio: float
    achieved_tflops: float
    achieved_gbs: float | None
    peak_mb: float | None


def make_row(
    system: str, retention: float, runs: Sequence[Measurement], shape: DecoderShape, weight_bytes: int, itemsize: int
) -> Row:
    """The row of some runs of one case; `weight_bytes` are read by each decoding step of the whole batch."""
    first = runs[0]
    flops = sum(_prefill_flops(shape, plan, first.text_tokens) for plan in first.plans)
    whole = sum(_prefill_flops(shape, _unpruned(plan), first.text_tokens) for plan in first.plans)
    prefill_ms = statistics.median([run.prefill_ms for run in runs])
    decode_ms = statistics.median([run.decode_ms for run in runs])
    steps = first.decode_steps
    numbers = _cache_numbers(shape, first)
    return Row(
        system=system,
        retention=retention,
        segments=first.segments[0],
        batch=len(first.plans),
        new_tokens=len(first.token_ids[0]),
        vision_ms=statistics.median([run.vision_ms for run in runs]),
        prune_ms=_median_of_known([run.prune_ms for run in runs]),
        prefill_ms=prefill_ms,
        decode_ms=decode_ms,
        total_ms=statistics.median([run.total_ms for run in runs]),
        decode_tokens_per_s=len(first.plans) * steps / decode_ms * 1e3 if steps else None,
        flops_ratio=flops / whole,
        achieved_tflops=flops / prefill_ms / 1e9,
        achieved_gbs=(steps * weight_bytes + numbers * itemsize) / decode_ms / 1e6 if steps else None,
        peak_mb=_median_of_known([run.peak_mb for run in runs]),
    )


def unpruned_plan(tokens: int, layers: int) -> StagePlan:
    """All video tokens in all layers."""
    return StagePlan(tokens, layers, (0,), (tokens,))


def _unpruned(plan: StagePlan) -> StagePlan:
    return unpruned_plan(plan.num_tokens, plan.num_layers)


def _prefill_flops(shape: DecoderShape, plan: StagePlan, text: int) -> int:
    return prefill_flops(shape, [n + text for n in plan.attention_tokens()], [n + text for n in plan.mlp_tokens()])


def _cache_numbers(shape: DecoderShape, run: Measurement) -> int:
    """Numbers of keys and values that all decoding steps read together, each step's own token included."""
    steps = run.decode_steps
    entries = 0
    for plan in run.plans:
        cached = sum(n + run.text_tokens for n in plan.attention_tokens())
        entries += steps * cached + plan.num_layers * steps * (steps + 1) // 2
    return 2 * entries * shape.kv_heads * shape.head_size


def _median_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
