"""What methods have in common that act at the input and leave the later layers alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from pruning.protocol import Kept, Needs, StagePlan, VideoGrid, VideoTokens
from pruning.schedule import plan_input_only


class OneStage(ABC):
    """A pruner with one stage, at layer 0; its retention is its input keep ratio."""

    name: str
    needs = Needs()

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """Keep round(r·N) tokens, at least 1, for all layers."""
        return plan_input_only(grid, num_layers, retention)

    @abstractmethod
    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Keep `plan.counts[0]` tokens of each video."""

    def prune_layer(self, stage: int, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Raise ValueError: no plan of this method has a later stage."""
        raise ValueError(f"{self.name} prunes at the input only, there is no stage {stage}")


class InputOnly(OneStage):
    """A pruner that chooses tokens at the input and keeps them as they are."""

    @torch.no_grad()
    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Keep each video's chosen rows."""
        return [Kept(self.choose(video, video.plan.counts[0]).to(video.hidden.device)) for video in videos]

    @abstractmethod
    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """`count` rows of the video's tokens, int64 ascending."""
