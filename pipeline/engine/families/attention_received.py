"""Which patches of a frame a vision tower attends to, recomputed beside its fused attention."""

from __future__ import annotations

import torch

_MAX_NUMBERS = 2**26  # attention weights held at once, float32: 256 MiB


def attention_received(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Share of attention that each patch receives inside its frame or step, float32 [T, patches].

    Softmax over the patches, mean over queries and heads: each frame sums to 1. `query` and `key` are
    [T, heads, patches, head size], not scaled yet.
    """
    frames, _, patches, head_size = query.shape
    query = query.flatten(0, 1).float() * head_size**-0.5
    key = key.flatten(0, 1).float()
    at_once = max(1, _MAX_NUMBERS // patches**2)
    parts = zip(query.split(at_once), key.split(at_once), strict=True)
    shares = torch.cat([(q @ k.transpose(1, 2)).softmax(dim=-1).mean(dim=1) for q, k in parts])
    return shares.view(frames, -1, patches).mean(dim=1)
