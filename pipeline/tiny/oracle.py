"""A pruner that knows the truth: what the built-in world would allow at best."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.tiny.features import scene_features
from pipeline.tiny.world import make_clip
from pruning import VideoTokens
from pruning.peers.input_only import InputOnly


class Oracle(InputOnly):
    """Keeps the tokens under objects first, the rest at random. Knows the clip by the request's seed."""

    name = "oracle"

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """All object tokens, or a random `count` of them; then random others."""
        clip = make_clip(video.seed)
        aspect = clip.width / clip.height
        owners = [scene_features(s, np.arange(s.slots), aspect)[1] for s in clip.scenes]
        shown = torch.from_numpy(np.concatenate(owners).reshape(-1) >= 0).double()
        noise = torch.rand(len(shown), generator=torch.Generator().manual_seed(video.seed), dtype=torch.double)
        return (shown + noise).argsort(descending=True)[:count].sort().values
