"""Which video entries of a layer's KV cache are worth keeping once the prompt is prefilled."""

from __future__ import annotations

import torch

from pipeline.engine.attention import received_attention

# Entries are judged by what they receive from so many tokens at the end of the prompt.
JUDGES = 32


def retained_entries(query: torch.Tensor, key: torch.Tensor, before: int, after: int, count: int) -> torch.Tensor:
    """The entries of a sequence that stay in a layer's cache, int64 ascending: all text and `count` of the video.

    `query` is [m, heads, head size] of at least the last min(after, 32) tokens, `key` [n, KV heads, head
    size] of all: `before` tokens of text, the video, `after` tokens of text. Those video entries stay
    that receive most attention from the last tokens of the prompt, 32 or `after` if they are fewer:
    softmax over all keys under the causal mask, mean over queries and heads; ties by index.
    """
    end = key.shape[0] - after
    received = received_attention(query[-min(after, JUDGES) :], key)[before:end]
    kept = received.argsort(descending=True, stable=True)[:count].sort().values + before
    entries = torch.arange(key.shape[0], device=key.device)
    return torch.cat((entries[:before], kept, entries[end:]))
