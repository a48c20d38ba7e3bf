"""Random tokens."""

from __future__ import annotations

import torch

from pruning.peers.input_only import InputOnly
from pruning.protocol import VideoTokens


class RandomTokens(InputOnly):
    """A random subset that depends on the request's seed and N alone, not on the batch or the device."""

    name = "random"

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """The first K of a permutation seeded by `VideoTokens.seed`, in order."""
        generator = torch.Generator().manual_seed(video.seed)
        return torch.randperm(len(video.hidden), generator=generator)[:count].sort().values
