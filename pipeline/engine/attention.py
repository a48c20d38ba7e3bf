"""Attention over packed sequences, over a KV cache, and of a prompt's last token alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def causal_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """Causal self-attention inside each of several packed sequences.

    `query` is [S, heads, head size], `key` and `value` [S, KV heads, head size] with S = sum of
    `lengths`; returns [S, heads · head size]. No mask is built: each sequence goes to the fused
    kernel by itself.
    """
    output = torch.empty_like(query)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        attended = F.scaled_dot_product_attention(
            query[rows].transpose(0, 1)[None],
            key[rows].transpose(0, 1)[None],
            value[rows].transpose(0, 1)[None],
            is_causal=True,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        output[rows] = attended[0].transpose(0, 1)
        start += length
    return output.flatten(1)


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


def last_token_attention(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """What the last token of a sequence attends to: softmax over all keys, mean over heads, float32 [n].

    `query` is the last token's [heads, head size] and `key` [n, KV heads, head size].
    """
    heads, head_size = query.shape
    kv_heads = key.shape[1]
    grouped = query.float().view(kv_heads, heads // kv_heads, head_size)
    scores = grouped @ key.float().permute(1, 2, 0) * head_size**-0.5  # [KV heads, group, n]
    return scores.softmax(dim=-1).flatten(0, 1).mean(dim=0)
