"""Attention of one token a sequence over a KV cache, and what keys receive from the end of a prompt."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cached_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """One query per sequence against all of its keys.

    `query` is [B, heads, head size], `keys` and `values` [B, KV heads, n, head size], `mask` bool
    [B, 1, 1, n], True where there is a key, or None if all are; returns [B, heads · head size].
    """
    batch, heads, head_size = query.shape
    kv_heads = keys.shape[1]
    # The query heads that share a KV head become rows of one matrix, so that keys are not repeated.
    grouped = query.view(batch, kv_heads, heads // kv_heads, head_size)
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(batch, heads * head_size)


def received_attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What each key of a sequence receives from its last m tokens, float32 [n].

    `query` is [m, heads, head size] of these tokens and `key` [n, KV heads, head size]: softmax over
    all keys under the causal mask, mean over queries and heads.
    """
    own, heads, head_size = query.shape
    whole, kv_heads, _ = key.shape
    grouped = query.float().view(own, kv_heads, heads // kv_heads, head_size).permute(1, 2, 0, 3).flatten(1, 2)
    scores = grouped @ key.float().permute(1, 2, 0) * head_size**-0.5  # [KV heads, group · m, n]
    if own > 1:
        is_later = torch.ones(own, whole, dtype=torch.bool, device=key.device).triu_(whole - own + 1)
        scores.unflatten(1, (-1, own)).masked_fill_(is_later, -torch.inf)
    return scores.softmax(dim=-1).flatten(0, 1).mean(dim=0)
