"""Qwen2-VL's vision tower on frames of one size: every step attends to itself alone, all steps at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from pipeline.engine.decoder import Rope
from pipeline.engine.families.attention_received import attention_received


class VisionTower:
    """Borrows the modules of transformers' tower and walks its blocks.

    transformers packs steps of any sizes into one sequence and attends to them one by one, which takes
    a kernel a step. Here the steps of a call have one shape, and are a batch.
    """

    def __init__(self, visual: Any) -> None:
        """`visual` is a Qwen2VisionTransformerPretrainedModel."""
        self._embed = visual.patch_embed.proj
        self._rotary = visual.rotary_pos_emb
        self._blocks: list[Any] = list(visual.blocks)
        self._merger = visual.merger
        self._merge_size: int = visual.spatial_merge_size

    def __call__(self, steps: torch.Tensor, with_attention: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Patches [T, rows, columns, merge², pixels] to tokens [T, rows · columns, hidden].

        The second is, if asked for, float32 [T, rows · columns]: the attention that the patches of a
        token receive in the last block, mean over queries, heads and patches.
        """
        num_steps, rows, columns, merged, _ = steps.shape
        # a convolution whose stride is its kernel is a product with the flattened patch
        hidden = F.linear(steps.flatten(1, 3), self._embed.weight.flatten(1))
        rope = self._rope(hidden, rows, columns)
        received = None
        for block in self._blocks:
            is_watched = with_attention and block is self._blocks[-1]
            attended, received = _attend(block.attn, block.norm1(hidden), rope, is_watched)
            hidden = hidden + attended
            del attended  # the MLP needs the room
            hidden = hidden + block.mlp(block.norm2(hidden))
        if received is not None:
            received = received.unflatten(1, (-1, merged)).mean(dim=2)
        return self._merger(hidden).unflatten(0, (num_steps, -1)), received

    def _rope(self, like: torch.Tensor, rows: int, columns: int) -> Rope:
        """Rotary tables of one step's patches, which stand token by token: float32 [patches, head size]."""
        side = self._merge_size
        row, column = (torch.arange(tokens * side, device=like.device) for tokens in (rows, columns))
        places = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1)
        places = places.unflatten(1, (columns, side)).unflatten(0, (rows, side)).transpose(1, 2)
        return Rope(*self._rotary(like, places.flatten(0, 3)))


def _attend(
    attention: Any, normed: torch.Tensor, rope: Rope, is_watched: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention inside each step, [T, patches, embedding], and what each patch received of it, if asked for."""
    query, key, value = _heads(attention, normed, rope)
    received = attention_received(query, key) if is_watched else None
    attended = F.scaled_dot_product_attention(query, key, value)
    return attention.proj(attended.transpose(1, 2).flatten(2)), received


def _heads(attention: Any, normed: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries and keys and plain values of [T, patches, embedding], [T, heads, patches, head size] each."""
    query, key, value = attention.qkv(normed).unflatten(-1, (3, attention.num_heads, -1)).unbind(dim=2)
    query, key = (rope.rotate(part.float()).to(part.dtype) for part in (query, key))
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
