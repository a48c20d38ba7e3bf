"""Kernels of relevance and cosine inside blocks of tokens (HieraVid, Level 2); never one over all tokens."""

from __future__ import annotations

from functools import lru_cache

import torch

from pruning.blocks import Blocks
from pruning.vectors import numbers_at_once

# A block is multiplied at its size rounded up to this, wherever its kernel is padded further.
_SIZE_STEP = 32
_STRIPS = 4


def block_kernels(
    features: torch.Tensor, relevance: torch.Tensor, blocks: Blocks, width: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """K_ij = rel_i · cos(h_i, h_j) · rel_j inside each of B blocks of at most `width` rows.

    `features` is [N, d] of any floating dtype, `relevance` [N] float32 ≥ 0; blocks of equal size should
    be neighbours. Returns K [B, width, width] of `dtype`, the relevance over the block's largest
    [B, width] of the same (only ratios matter, and a largest weight of 1 keeps small ones from underflowing when
    multiplied), and the rows [B, width] int64. Padding is 0 in K and relevance and names the last row.
    A zero or non-finite vector has cosine 0 with every other and itself.
    """
    device = features.device
    starts, sizes = blocks.starts.to(device), blocks.sizes.to(device)
    offset = torch.arange(width, device=device)
    rows = (starts.unsqueeze(1) + offset).clamp_max(features.shape[0] - 1)
    weights = relevance[rows].to(dtype).masked_fill_(offset >= sizes.unsqueeze(1), 0)
    weights /= weights.amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    kernel = torch.zeros(len(blocks), width, width, dtype=dtype, device=device)
    rounded = (blocks.sizes + _SIZE_STEP - 1) // _SIZE_STEP * _SIZE_STEP
    first = 0
    for size, number in zip(*(x.tolist() for x in rounded.unique_consecutive(return_counts=True)), strict=True):
        size = min(size, width)
        at_once = max(1, numbers_at_once(device) // (size * features.shape[1]))
        for begin in range(first, first + number, at_once):
            part = slice(begin, min(begin + at_once, first + number))
            _fill(kernel[part, :size, :size], features, rows[part, :size], weights[part, :size])
        first += number
    return kernel, weights, rows


def _fill(kernel: torch.Tensor, features: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> None:
    """Write the kernels of a few blocks of equal size n: `kernel` [b, n, n], `rows` and `weights` [b, n]."""
    vectors = features.index_select(0, rows.flatten()).to(kernel.dtype).view(*rows.shape, -1)
    norm = torch.linalg.vector_norm(vectors, dim=2)
    is_vector = (norm >= 1e-12) & (norm < torch.inf)
    vectors *= torch.where(is_vector, weights / norm, 0).unsqueeze(2)
    n = rows.shape[1]
    strip = max(128, -(-n // _STRIPS))
    # A kernel is symmetric: products up to the diagonal, copies beyond it.
    for begin in range(0, n, strip):
        end = min(begin + strip, n)
        kernel[:, begin:end, :end] = vectors[:, begin:end] @ vectors[:, :end].transpose(1, 2)
        kernel[:, :begin, begin:end] = kernel[:, begin:end, :begin].transpose(1, 2)
    kernel.nan_to_num_(nan=0.0)  # a non-finite vector times its weight of 0
    # A token's cosine with itself is exactly 1, so that equal relevance ties by index.
    kernel.diagonal(dim1=1, dim2=2).copy_(torch.where(is_vector, weights * weights, 0))


def project(features: torch.Tensor, dimensions: int) -> torch.Tensor:
    """A Gaussian random projection of `features` [N, d] to [N, `dimensions`] float32, which nearly keeps cosines.

    The matrix depends on d and `dimensions` alone, never on the batch, the device or a seed. Not fewer
    dimensions than d leave the features as they are.
    """
    if dimensions >= features.shape[1]:
        return features
    return features.float() @ _matrix(features.shape[1], dimensions, features.device)


@lru_cache(maxsize=8)
def _matrix(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Standard normal numbers [rows, columns]; a cosine does not change with their scale."""
    generator = torch.Generator().manual_seed(rows << 32 | columns)
    return torch.randn(rows, columns, generator=generator).to(device)
