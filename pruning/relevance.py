"""How the prompt weighs video tokens (HieraVid, Level 2)."""

from __future__ import annotations

from typing import Literal

import torch


def relevance(
    attention: torch.Tensor,
    sign: Literal["positive", "negative"],
    transform: Literal["minmax", "rank", "exp"],
) -> torch.Tensor:
    """Weight of each live token of a video from the last prompt token's attention to it.

    `attention` is [n]; the result is [n] float32 in [0, 1]. With a the signed attention:
    minmax maps a to [0, 1], rank is (rank + ½)/n with equal values sharing their mean rank, exp is
    e^((a − mean)/std) over its largest value (one factor for all tokens changes no selection, and
    keeps an attention sink from overflowing). Constant attention gives 1.
    """
    signed = torch.nan_to_num(attention.float())
    if sign == "negative":
        signed = -signed
    low, high = signed.aminmax()
    if transform == "minmax":
        weights = (signed - low) / (high - low)
    elif transform == "rank":
        in_order = signed.sort().values
        below = torch.searchsorted(in_order, signed)
        up_to = torch.searchsorted(in_order, signed, right=True)
        weights = (below + up_to).float() / (2 * signed.numel())
    else:
        weights = ((signed - high) / signed.std(correction=0)).exp()
    return torch.where(high > low, weights, 1.0)
