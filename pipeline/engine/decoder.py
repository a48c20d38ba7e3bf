"""The language model's decoder layers, opened up so that tokens can leave between attention and MLP."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.engine.errors import ModelError
from pipeline.engine.memory import most_mlp_rows
from pruning.cost import DecoderShape

_MODEL_TYPES = ("qwen2", "qwen2_vl_text")

# Rotary tables of these kinds depend on a token's position alone; others change with the length of
# the whole sequence, which a cache of rotated keys cannot follow.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class Rope(NamedTuple):
    """Rotary tables of n tokens: cosines and sines, [n, head size] each."""

    cos: torch.Tensor
    sin: torch.Tensor

    def select(self, rows: torch.Tensor | slice) -> Rope:
        """The tables of some of the tokens."""
        return Rope(self.cos[rows], self.sin[rows])

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        """Turn queries or keys [n, heads, head size] by their tokens' positions."""
        half = heads.shape[-1] // 2
        turned = heads * self.cos[:, None]
        turned[..., :half].addcmul_(heads[..., half:], self.sin[:, None, :half], value=-1)
        turned[..., half:].addcmul_(heads[..., :half], self.sin[:, None, half:])
        return turned


class Decoder:
    """A Qwen2 decoder on packed tokens: every method works on [n, hidden] without a batch dimension.

    It borrows the modules of a transformers model and keeps their weights where they are.
    """

    def __init__(self, model: nn.Module, lm_head: nn.Module, config: Any) -> None:
        """`model` is transformers' Qwen2Model or Qwen2VLTextModel, `config` its config."""
        parts: Any = model
        self.layers: list[Any] = list(parts.layers)
        self._embed_tokens = parts.embed_tokens
        self._rotary = parts.rotary_emb
        self._norm = parts.norm
        self._lm_head = lm_head
        self.max_positions: int = config.max_position_embeddings
        self.vocabulary: int = parts.embed_tokens.weight.shape[0]
        self.mlp_rows = most_mlp_rows(self.device)  # a memory plan may say less
        self.shape = DecoderShape(
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            ffn=config.intermediate_size,
            layers=config.num_hidden_layers,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights, activations and cache."""
        return self._embed_tokens.weight.dtype

    def embed(self, token_ids: list[int] | torch.Tensor) -> torch.Tensor:
        """Embeddings [n, hidden] of text tokens."""
        return self._embed_tokens(torch.as_tensor(token_ids, dtype=torch.int64, device=self.device))

    def rope(self, positions: torch.Tensor) -> Rope:
        """Rotary tables of tokens at `positions`, int64 [3, n] on the axes of M-RoPE, or [n], alike on all axes."""
        like = self._embed_tokens.weight  # the tables take its dtype and device
        cos, sin = self._rotary(like, positions.unsqueeze(-2))
        return Rope(cos[0], sin[0])

    def attention_input(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The residual stream, normed for `layer`'s attention."""
        return _rms_norm(self.layers[layer].input_layernorm, hidden)

    def queries(self, layer: int, normed: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Rotated queries [n, heads, head size]."""
        return rope.rotate(self.layers[layer].self_attn.q_proj(normed).unflatten(-1, (-1, self.shape.head_size)))

    def keys_values(self, layer: int, normed: torch.Tensor, rope: Rope) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotated keys and plain values, [n, KV heads, head size] each."""
        attention = self.layers[layer].self_attn
        heads = (-1, self.shape.head_size)
        keys = rope.rotate(attention.k_proj(normed).unflatten(-1, heads))
        return keys, attention.v_proj(normed).unflatten(-1, heads)

    def add_attention(self, layer: int, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The residual stream after attention; `attended` is [n, heads · head size]."""
        return hidden + self.layers[layer].self_attn.o_proj(attended)

    def add_mlp(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The residual stream after `layer`'s MLP, whose wide activations exist for `mlp_rows` tokens at a time."""
        block = self.layers[layer]
        if hidden.shape[0] <= self.mlp_rows:
            return hidden + _gated_mlp(block.mlp, _rms_norm(block.post_attention_layernorm, hidden))
        output = torch.empty_like(hidden)
        pieces = -(-hidden.shape[0] // self.mlp_rows)
        for rows, place in zip(hidden.tensor_split(pieces), output.tensor_split(pieces), strict=True):
            torch.add(rows, _gated_mlp(block.mlp, _rms_norm(block.post_attention_layernorm, rows)), out=place)
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [n, vocabulary] from the last layer's output."""
        return self._lm_head(_rms_norm(self._norm, hidden)).float()


def check_decoder_config(config: Any) -> None:
    """Raise ModelError unless `Decoder` computes what transformers would for this language model."""
    if config.model_type not in _MODEL_TYPES:
        supported = ", ".join(_MODEL_TYPES)
        raise ModelError(f"language model {config.model_type!r} is not supported; supported: {supported}")
    if config.hidden_act != "silu":
        raise ModelError(f"activation {config.hidden_act!r} is not supported; supported: silu")
    if any(kind != "full_attention" for kind in config.layer_types):
        raise ModelError("sliding window attention is not supported")
    rope_type = config.rope_parameters["rope_type"]
    if rope_type not in _ROPE_TYPES:
        raise ModelError(f"rope type {rope_type!r} is not supported; supported: {', '.join(_ROPE_TYPES)}")
    if config.model_type == "qwen2_vl_text":
        sections = config.rope_parameters.get("mrope_section") or []
        pairs = config.hidden_size // config.num_attention_heads // 2
        if len(sections) != 3 or sum(sections) != pairs:
            raise ModelError(f"mrope_section {sections} must divide the {pairs} pairs of a head among three axes")


def _gated_mlp(mlp: Any, normed: torch.Tensor) -> torch.Tensor:
    """A Qwen2MLP that holds two wide activations at a time, not three."""
    gate = F.silu(mlp.gate_proj(normed), inplace=True)
    return mlp.down_proj(gate.mul_(mlp.up_proj(normed)))


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """A Qwen2RMSNorm through torch's fused kernel."""
    return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)
