"""Causal attention of several packed sequences of different lengths, in one kernel where the device has one.

On CUDA in half precision that is torch's own flash attention over cumulative lengths
(`torch.nn.attention.varlen`, prototype: its arguments changed between torch 2.10 and 2.12). The
adapter to it follows the signature that this torch has. Everywhere else each sequence goes to
`scaled_dot_product_attention` by itself. Unmeasured for want of a GPU: the one kernel's speed against
a loop of calls; what is tested without one is the loop and the arguments of the kernel.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F

from pipeline.engine.upload import upload


def causal_options(function: Callable[..., Any]) -> dict[str, Any]:
    """The keywords by which a version of `varlen_attn` is causal and takes fewer KV heads than heads.

    The window (−1, 0) is everything behind and nothing ahead; before it stood `is_causal`. Where there
    is no `enable_gqa` the function does not look at the heads, which its kernel groups by itself.
    """
    known = inspect.signature(function).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return causal | ({"enable_gqa": True} if "enable_gqa" in known else {})


@cache
def varlen_kernel() -> Callable[..., torch.Tensor] | None:
    """torch's `varlen_attn`, causal; None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # late: it takes a second, torch's compiler comes along
    except ImportError:
        return None
    return partial(varlen_attn, **causal_options(varlen_attn))


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> torch.Tensor:
    """Causal attention inside each of several packed sequences.

    `query` is [Σ query lengths, heads, head size], `key` and `value` [Σ key lengths, KV heads, head
    size]; returns the query's shape. A sequence with more keys than queries continues what the first
    keys are of: its last query sees all keys, the one before all but the last.
    """
    kernel = varlen_kernel() if has_varlen_kernel(query.device, query.dtype, query.shape[-1]) else None
    if kernel is None:
        return _one_by_one(query, key, value, query_lengths, key_lengths)
    return kernel(
        query,
        key,
        value,
        _cumulated(tuple(query_lengths), query.device),
        _cumulated(tuple(key_lengths), query.device),
        max(query_lengths),
        max(key_lengths),
    )


@cache
def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Whether flash attention takes tensors like these: from Ampere on, heads of up to 256 in steps of 8."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and dtype in (torch.float16, torch.bfloat16)
        and head_size <= 256
        and head_size % 8 == 0
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
    )


@lru_cache(maxsize=256)
def _cumulated(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """int32 [B + 1]: where each sequence starts; kept, since all layers between two stages ask for the same."""
    return upload(list(itertools.accumulate(lengths, initial=0)), device, torch.int32)


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
) -> torch.Tensor:
    """The same, a sequence at a time."""
    is_grouped = key.shape[1] != query.shape[1]
    key_parts, value_parts = key.split(list(key_lengths)), value.split(list(key_lengths))
    outputs: list[torch.Tensor] = []
    for parts in zip(query.split(list(query_lengths)), key_parts, value_parts, strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        num_queries, num_keys = q.shape[2], k.shape[2]
        # A single query sees everything, and as many queries as keys are plainly causal: no mask is built.
        bias = _lower_right(num_queries, num_keys) if 1 < num_queries < num_keys else None
        is_causal = num_queries == num_keys
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=is_causal, enable_gqa=is_grouped)
        outputs.append(attended[0].transpose(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _lower_right(num_queries: int, num_keys: int) -> torch.Tensor:
    """The mask of queries that end with the last key."""
    from torch.nn.attention.bias import causal_lower_right  # late: it takes a second, torch's compiler comes along

    return causal_lower_right(num_queries, num_keys)
