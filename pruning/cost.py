"""What a prefill costs: FLOPs and KV-cache entries, pruned against unpruned.

Only the decoder layers of the LLM are counted: not the vision tower, not the output head, not the
pruning itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruning.protocol import StagePlan


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder with grouped-query attention and a gated MLP."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    layers: int


def prefill_flops(shape: DecoderShape, attention_tokens: Sequence[int], mlp_tokens: Sequence[int]) -> int:
    """FLOPs of one prefill; the lists hold the tokens of each layer, text included.

    Per layer: query and output projections, key and value projections, causal attention, MLP.
    """
    if not len(attention_tokens) == len(mlp_tokens) == shape.layers:
        raise ValueError(f"expected {shape.layers} layers, got {len(attention_tokens)} and {len(mlp_tokens)}")
    d, d_q, d_kv = shape.hidden, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    attention = sum(n * (4 * d * d_q + 4 * d * d_kv) + 2 * d_q * n * (n + 1) for n in attention_tokens)
    return attention + sum(6 * n * d * shape.ffn for n in mlp_tokens)


def flops_ratio(shape: DecoderShape, plan: StagePlan, text_tokens: int) -> float:
    """Prefill FLOPs under `plan` over those of the unpruned video, `text_tokens` text tokens in both."""
    whole = [plan.num_tokens + text_tokens] * plan.num_layers
    pruned = prefill_flops(
        shape, [n + text_tokens for n in plan.attention_tokens()], [n + text_tokens for n in plan.mlp_tokens()]
    )
    return pruned / prefill_flops(shape, whole, whole)


def kv_ratio(plan: StagePlan, text_tokens: int) -> float:
    """Cached entries after prefill over the unpruned L·(N + M), text included."""
    cached = sum(n + text_tokens for n in plan.attention_tokens())
    return cached / (plan.num_layers * (plan.num_tokens + text_tokens))


def literature_flops(tokens: Sequence[int], hidden: int, ffn: int) -> int:
    """FLOPs as papers on token pruning count them: 4nd² + 2n²d + 2ndm a layer, `tokens` of each layer.

    Multiply-adds, with keys and values at full width, attention that is not causal and an MLP of two
    matrices: good for comparing with published numbers only.
    """
    return sum(4 * n * hidden * hidden + 2 * n * n * hidden + 2 * n * hidden * ffn for n in tokens)


def literature_flops_ratio(plan: StagePlan, text_tokens: int, hidden: int, ffn: int) -> float:
    """`flops_ratio` in the literature's form, where a stage's count holds for the whole of its first layer."""
    pruned = literature_flops([n + text_tokens for n in plan.mlp_tokens()], hidden, ffn)
    return pruned / literature_flops([plan.num_tokens + text_tokens] * plan.num_layers, hidden, ffn)
