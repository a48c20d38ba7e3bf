"""The modules of LLaVA-Video under the names of its published weights."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2Model, SiglipVisionModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

from pipeline.engine.families.llava_video_config import STRIDE, LlavaVideoConfig


class LlavaVideoModel(nn.Module):
    """SigLIP without its last layer, a projector of two linear layers, the newline, and Qwen2.

    `config` is a LlavaVideoConfig. The names of the parameters are those of the published weights.
    """

    def __init__(self, config: LlavaVideoConfig) -> None:
        """Random weights, or none on the meta device (see `fix_tables`)."""
        super().__init__()
        self.config = config
        hidden = config.text.hidden_size
        model: Any = Qwen2Model(config.text)
        model.vision_tower = nn.ModuleDict(
            {"vision_tower": nn.ModuleDict({"vision_model": SiglipVisionModel(config.vision)})}
        )
        model.mm_projector = nn.Sequential(
            nn.Linear(config.vision.hidden_size, hidden), nn.GELU(), nn.Linear(hidden, hidden)
        )
        model.image_newline = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))
        self.model = model
        self.lm_head = nn.Linear(hidden, config.text.vocab_size, bias=False)
        self.tie_weights()

    @property
    def tower(self) -> Any:
        """The SiglipVisionModel."""
        return self.model.vision_tower["vision_tower"]["vision_model"]

    def tie_weights(self) -> None:
        """Let input and output embeddings be one, where the config says so: only the former is in the weights then."""
        if self.config.text.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def fix_tables(self, device: torch.device) -> None:
        """Put the tables that are no weights on `device`: a model built on the meta device has none."""
        embeddings = self.tower.embeddings
        embeddings.position_ids = torch.arange(embeddings.num_positions, device=device)[None]
        # computed on the CPU as transformers does: a model that moves later has the same numbers
        self.model.rotary_emb = Qwen2RotaryEmbedding(self.config.text).to(device)

    def lay_out(self, patches: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
        """Pool patches [T, patches, n] to a grid and end each of its rows with `newline` [n]: [T, positions, n]."""
        side = self.config.patches
        grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if self.config.pool_mode == "average":
            grid = F.avg_pool2d(grid, STRIDE)
        else:
            grid = F.interpolate(grid, size=(self.config.side, self.config.side), mode="bilinear")
        rows = grid.permute(0, 2, 3, 1)
        ends = newline.to(rows.dtype).expand(*rows.shape[:2], 1, -1)
        return torch.cat((rows, ends), dim=2).flatten(1, 2)
