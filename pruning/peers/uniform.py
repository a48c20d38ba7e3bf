"""Evenly spaced tokens."""

from __future__ import annotations

import torch

from pruning.peers.input_only import InputOnly
from pruning.protocol import VideoTokens


class UniformTokens(InputOnly):
    """Every k-th token of the row-major sequence: the middle of each of K even parts."""

    name = "uniform"

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """Rows floor((i + ½)·N / K)."""
        return (2 * torch.arange(count) + 1) * len(video.hidden) // (2 * count)
