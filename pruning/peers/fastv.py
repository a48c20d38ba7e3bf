"""FastV (arXiv 2403.06764, ECCV 2024): past layer K, only the tokens that the last token attends to.

The rule: the first K layers see all tokens; then the visual tokens are ranked by the attention that they receive
from the last token of the prompt (heads averaged), and the least attended R % leave for good. Published: K = 2
with R = 50 % on models of 32 and 40 layers; R follows from the retention here.

Where it adapts:
- K is scaled to the depth: max(1, round(2·L / 32)), which is the published 2 from 24 to 40 layers and 1 for a small
  model. K layers hold N tokens and the other L − K hold K₁ = round((r·L − K)·N / (L − K)), so that the mean over
  layers is r.
- FastV prunes between layers, by the attention of the last full one. A stage here acts inside its layer, after
  attention and before the MLP: the ranking is by the attention of layer K (counted from 0), and that layer's
  keys and values are still cached at N.
- K full layers cost K/L: a lower retention is unreachable, and the minimum keeps a single token after them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pruning.peers.ranking import largest
from pruning.protocol import Kept, Needs, StagePlan, UnreachableRetentionError, VideoGrid, VideoTokens
from pruning.schedule import check_retention

FULL_LAYERS, PUBLISHED_DEPTH = 2, 32


def full_layers(num_layers: int) -> int:
    """K: the layers that see all tokens, scaled from 2 of 32 (halves to even), at least 1."""
    return max(1, round(FULL_LAYERS * num_layers / PUBLISHED_DEPTH))


class FastV:
    """Prunes once, by the last prompt token's attention at layer K."""

    name = "fastv"
    needs = Needs(last_token_attention=True)

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """All tokens for K layers, then K₁; raises UnreachableRetentionError where K₁ would be below 1."""
        check_retention(retention)
        tokens, full = grid.tokens, full_layers(num_layers)
        pruned = num_layers - full
        least = tokens * full + pruned
        if retention * num_layers * tokens < least - 1e-6:
            raise UnreachableRetentionError(self.name, retention, least / (num_layers * tokens))
        if pruned == 0:
            return StagePlan(tokens, num_layers, (0,), (tokens,))
        kept = math.floor((retention * num_layers - full) * tokens / pruned + 0.5)
        return StagePlan(tokens, num_layers, (0, full), (tokens, min(max(kept, 1), tokens)))

    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Keep everything."""
        return [Kept(torch.arange(len(video.hidden), device=video.hidden.device)) for video in videos]

    @torch.no_grad()
    def prune_layer(self, stage: int, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Keep the most attended tokens; raises ValueError if a video comes without attention."""
        return [Kept(most_attended(video, video.plan.counts[stage], self.name)) for video in videos]


def most_attended(video: VideoTokens, count: int, method: str) -> torch.Tensor:
    """Rows of the `count` tokens with the most attention from the last prompt token, int64 ascending."""
    if video.attention is None:
        raise ValueError(f"{method} needs the last prompt token's attention at its stage layer")
    return largest(video.attention.float(), count)
