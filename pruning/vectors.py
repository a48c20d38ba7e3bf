"""Cosines in float32, whatever the model's dtype: in float16 they overflow to NaN."""

from __future__ import annotations

import torch


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """`vectors` [..., d] scaled to length 1, float32; zero and non-finite vectors become zero."""
    vectors = vectors.float()
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    scale = torch.where(norm < torch.inf, 1 / norm.clamp_min(1e-12), 0)
    return torch.nan_to_num_(vectors * scale, nan=0.0)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Cosine of `a` and `b` [..., d] over the last axis, float32 [...]; 0 where either is zero."""
    return (unit(a) * unit(b)).sum(-1)


def numbers_at_once(device: torch.device) -> int:
    """How many float32 numbers to work on at a time where a large tensor is taken in pieces.

    On a CPU 16 MiB stay in its cache, and the C library gives such pieces out again and again, where
    larger ones would come as fresh pages from the system. A GPU is filled by 256 MiB, of which several
    are in use at a time.
    """
    return 2**22 if device.type == "cpu" else 2**26
