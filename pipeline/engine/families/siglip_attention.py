"""Which patches a SigLIP tower attends to, recomputed beside its fused attention."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import torch

_MAX_NUMBERS = 2**26  # attention weights held at once, float32: 256 MiB


class SiglipAttention:
    """A context in which the tower's forward leaves behind what `received` needs.

    The tower keeps its fused kernel, which never forms the attention weights; they are recomputed
    from the input of the last layer that is used.
    """

    def __init__(self, tower: Any, feature_layer: int | list[int]) -> None:
        """`tower` is a SiglipVisionModel, `feature_layer` the config's `vision_feature_layer`."""
        layers = tower.encoder.layers
        # hidden state 0 is the patch embedding and k what layer k − 1 returns
        wanted = [feature_layer] if isinstance(feature_layer, int) else feature_layer
        state = max(index if index >= 0 else len(layers) + 1 + index for index in wanted)
        self._attention = layers[max(state, 1) - 1].self_attn
        self._inputs: list[torch.Tensor] = []

    def __enter__(self) -> Self:
        """Start to watch."""
        self._hook = self._attention.register_forward_pre_hook(self._note, with_kwargs=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the tower as it was."""
        self._hook.remove()

    def received(self) -> torch.Tensor:
        """Share of attention that each patch of the frames seen receives, float32 [T, patches].

        Softmax over the patches, mean over queries and heads: each frame sums to 1.
        """
        attention = self._attention
        normed = torch.cat(self._inputs)
        frames, patches, _ = normed.shape
        heads = (frames, patches, -1, attention.head_dim)
        query = attention.q_proj(normed).view(heads).transpose(1, 2).flatten(0, 1).float() * attention.scale
        key = attention.k_proj(normed).view(heads).transpose(1, 2).flatten(0, 1).float()
        at_once = max(1, _MAX_NUMBERS // patches**2)
        parts = zip(query.split(at_once), key.split(at_once), strict=True)
        shares = torch.cat([(q @ k.transpose(1, 2)).softmax(dim=-1).mean(dim=1) for q, k in parts])
        return shares.view(frames, -1, patches).mean(dim=1)

    def _note(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inputs.append(args[0] if args else kwargs["hidden_states"])
