"""Random weights that behave like weights: nothing vanishes, nothing explodes, frames and logits differ."""

from __future__ import annotations

import torch
from torch import nn

_POSITION_SCALE = 0.1  # a learnt position must not make the same place of two frames alike
_BIAS_SCALE = 0.02


@torch.no_grad()
def fill_randomly(model: nn.Module, seed: int) -> None:
    """Overwrite all parameters in place, on the device where they are.

    Matrices get a standard deviation of 1/√(fan in) and rows of zero mean: what an activation function
    adds to every hidden number alike would give all tokens one common direction, and no frame would
    differ from the next one. Norms are the identity.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, weight in model.named_parameters():  # names tied weights once
        if "norm" in name or "ln_q" in name:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        elif name.endswith("bias"):
            weight.normal_(0.0, _BIAS_SCALE, generator=generator)
        elif "position_embedding" in name:
            weight.normal_(0.0, _POSITION_SCALE, generator=generator)
        elif "embed_tokens" in name or weight.ndim == 1:
            weight.normal_(0.0, 1.0, generator=generator)
        else:
            weight.normal_(0.0, weight[0].numel() ** -0.5, generator=generator)
            weight.sub_(weight.mean(dim=tuple(range(1, weight.ndim)), keepdim=True))
