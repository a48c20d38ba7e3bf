"""EVS, Efficient Video Sampling (arXiv 2510.14624): drop what has not changed since the frame before.

The rule: a token of frame t ≥ 1 is as new as it differs from the token at the same position of frame t − 1;
the whole first frame stays, and of the rest the newest tokens, over the whole video at once (one threshold
for all frames, the q-th percentile at a pruning rate q). Positions are kept. No other parameter.

Difference is 1 − cosine of the two token embeddings, as in the authors' implementation in vLLM; the paper's
pixel-space form (L1 norm between patches) needs frames, which a pruner does not see.

Where it adapts: the count is round(r·N) instead of a percentile, ties go to the earlier token. Where even
the first frame exceeds it, vLLM keeps the frame all the same; here the budget counts, and such a retention
is unreachable, with 1/T as the minimum.
"""

from __future__ import annotations

import torch

from pruning.peers.input_only import InputOnly
from pruning.peers.ranking import largest
from pruning.protocol import StagePlan, UnreachableRetentionError, VideoGrid, VideoTokens
from pruning.vectors import cosine


class EVS(InputOnly):
    """Keeps the first frame and the tokens least similar to their predecessors."""

    name = "evs"

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """round(r·N) tokens for all layers; raises UnreachableRetentionError below one frame."""
        plan = super().plan(grid, num_layers, retention)
        if plan.counts[0] < grid.positions:
            raise UnreachableRetentionError(self.name, retention, 1 / grid.frames)
        return plan

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """The first frame, then the tokens of least cosine to the frame before."""
        tokens = video.hidden.reshape(video.grid.frames, video.grid.positions, -1)
        change = tokens.new_full(tokens.shape[:2], torch.inf, dtype=torch.float32)
        change[1:] = 1 - cosine(tokens[1:], tokens[:-1])
        return largest(change.flatten(), count)
