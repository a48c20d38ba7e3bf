"""SigLIP's vision tower, up to the last layer whose output the language model sees."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pipeline.engine.families.attention_received import attention_received


class SiglipTower:
    """Borrows the modules of transformers' tower and walks its layers.

    transformers' own forward runs them all, and a last norm and a pooling head, whatever is used of them.
    """

    def __init__(self, model: Any, feature_layer: int | list[int]) -> None:
        """`model` is a SiglipVisionModel, `feature_layer` the hidden states that become video tokens.

        State 0 is the patch embedding and k what layer k − 1 returns; negative ones count from the last.
        Several are put side by side.
        """
        count = len(model.encoder.layers)
        wanted = [feature_layer] if isinstance(feature_layer, int) else feature_layer
        self._states = [index if index >= 0 else count + 1 + index for index in wanted]
        self._embeddings = model.embeddings
        self._layers: list[Any] = list(model.encoder.layers)[: max(1, *self._states)]

    def __call__(self, pixels: torch.Tensor, with_attention: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pixels [T, 3, side, side] to features [T, patches, width].

        The second is, if asked for, float32 [T, patches]: the attention that each patch receives in the
        last layer that is used, mean over queries and heads.
        """
        # The convolution leaves each patch's numbers far apart, and every sum with them would, too.
        hidden = self._embeddings(pixels).contiguous()
        kept = {0: hidden} if 0 in self._states else {}
        received = None
        for state, layer in enumerate(self._layers, start=1):
            is_watched = with_attention and state == len(self._layers)
            attended, received = _attend(layer.self_attn, layer.layer_norm1(hidden), is_watched)
            hidden = hidden + attended
            del attended  # the MLP needs the room
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
            if state in self._states:
                kept[state] = hidden
        features = [kept[state] for state in self._states]
        return features[0] if len(features) == 1 else torch.cat(features, dim=-1), received


def _attend(attention: Any, normed: torch.Tensor, is_watched: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention inside each frame, [T, patches, width], and what each patch received of it, if asked for."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (part(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in projections)
    received = attention_received(query, key) if is_watched else None
    attended = F.scaled_dot_product_attention(query, key, value)
    return attention.out_proj(attended.transpose(1, 2).flatten(2)), received
