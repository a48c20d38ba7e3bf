"""No pruning: what the others are compared with."""

from __future__ import annotations

import torch

from pruning.peers.input_only import InputOnly
from pruning.protocol import StagePlan, VideoGrid, VideoTokens
from pruning.schedule import check_retention


class NoPruning(InputOnly):
    """Keeps every token, whatever retention is asked for."""

    name = "none"

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """N tokens for all layers."""
        check_retention(retention)
        return StagePlan(grid.tokens, num_layers, (0,), (grid.tokens,))

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """All rows."""
        return torch.arange(len(video.hidden))
