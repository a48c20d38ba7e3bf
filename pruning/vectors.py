"""Cosines in float32, whatever the model's dtype: in float16 they overflow to NaN."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """`vectors` [..., d] scaled to length 1, float32; zero and non-finite vectors become zero."""
    return torch.nan_to_num_(F.normalize(vectors.float(), dim=-1, eps=1e-12), nan=0.0)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of `a` and `b` [..., d] over the last axis, float32 [...]; 0 where either is zero."""
    return (unit(a) * unit(b)).sum(-1)
