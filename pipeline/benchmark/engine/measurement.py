"""One timed run of either side, and the row that several runs of the same case make."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    `achieved_tflops` the FLOPs that were done by `prefill_ms` (the engine leaves those of the last layer
    out that nothing reads, which `flops_ratio` counts on both sides), `achieved_gbs` the bytes of weights
    and cache that decoding has to read, by its time. `peak_mb` is the largest memory in use, weights included: what
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
    system: str,
    retention: float,
    runs: Sequence[Measurement],
    shape: DecoderShape,
    weight_bytes: int,
    itemsize: int,
    is_last_layer_cut: bool = False,
) -> Row:
    """The row of some runs of one case; `weight_bytes` are read by each decoding step of the whole batch.

    `is_last_layer_cut` where the system computes only keys and values of all tokens in the last layer.
    """
    first = runs[0]
    unread = sum(_unread_flops(shape, plan, first.text_tokens) for plan in first.plans) if is_last_layer_cut else 0
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
        achieved_tflops=(flops - unread) / prefill_ms / 1e9,
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


def _unread_flops(shape: DecoderShape, plan: StagePlan, text: int) -> int:
    """FLOPs of the last layer for all tokens but the last one, keys and values apart: no logits depend on them."""
    attention, mlp = plan.attention_tokens()[-1] + text, plan.mlp_tokens()[-1] + text
    last_layer = replace(shape, layers=1)
    keys_and_values = 4 * attention * shape.hidden * shape.kv_heads * shape.head_size
    one_query = prefill_flops(last_layer, [1], [1]) - 4 * shape.hidden * shape.kv_heads * shape.head_size
    its_attention = 4 * shape.heads * shape.head_size * (attention - 1)  # one key is already in `one_query`
    return prefill_flops(last_layer, [attention], [mlp]) - keys_and_values - one_query - its_attention


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
