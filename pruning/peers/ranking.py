"""Take the best rows by a score."""

from __future__ import annotations

import torch


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the `count` largest of `scores` [n], int64 ascending.

    Equal scores go to the first, which no top-k promises on every device; NaN counts as the smallest.
    """
    return ranks(scores).lt(count).nonzero().squeeze(1)


def ranks(scores: torch.Tensor) -> torch.Tensor:
    """Each entry's rank along the last axis of `scores` [..., n], int64: 0 for the largest; ties in order."""
    order = torch.nan_to_num(scores, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argsort(
        dim=-1, descending=True, stable=True
    )
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
