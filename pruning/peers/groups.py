"""Means of groups of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def group_means(values: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """Mean row of each group, [count, d] float32; 0 where a group is empty.

    `values` is [n, d], `groups` [n] int64 in 0..count−1. Each group is summed in the order of its rows, which
    atomic additions would not keep.
    """
    groups, rows = groups.sort(stable=True)
    starts = torch.searchsorted(groups, torch.arange(count, device=groups.device))
    return F.embedding_bag(rows, values.float(), starts, mode="mean")
