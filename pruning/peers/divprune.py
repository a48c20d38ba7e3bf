"""DivPrune (arXiv 2503.02175, CVPR 2025): the subset of visual tokens that lie farthest apart.

The rule: maximise the smallest distance between any two kept tokens (the max-min diversity problem), greedily.
Distance is 1 − cosine of the token embeddings after the projector. The first token is the one whose nearest
other token is farthest; each next one is the token whose nearest kept token is farthest. No parameter but the
number of tokens.

Where it adapts: nothing of the rule. The tokens are those of the whole video at once, as the paper does for
video models. Its N × N distance matrix (722 MB at 13,440 tokens) is replaced by one row a step, and the first
choice goes over blocks of rows. Ties go to the earlier token.
"""

from __future__ import annotations

import torch

from pruning.peers.input_only import InputOnly
from pruning.protocol import VideoTokens
from pruning.vectors import unit

# Rows whose cosines to all tokens are held at once while looking for the first token.
_BLOCK = 1024


class DivPrune(InputOnly):
    """Keeps tokens by greedy max-min diversity."""

    name = "divprune"

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """Farthest-point selection; the smallest distance is the largest cosine."""
        units = unit(video.hidden)
        item = _nearest_cosine(units).min(0, keepdim=True).indices
        is_kept = torch.zeros(len(units), dtype=torch.bool, device=units.device)
        closest = torch.full((len(units),), -torch.inf, device=units.device)
        for _ in range(count):
            is_kept[item] = True
            closest = torch.maximum(closest, units @ units.index_select(0, item).squeeze(0))
            # Kept tokens are out of the running, even where all others are copies of them.
            item = closest.masked_fill(is_kept, torch.inf).min(0, keepdim=True).indices
        return is_kept.nonzero().squeeze(1)


def _nearest_cosine(units: torch.Tensor) -> torch.Tensor:
    """Each row's largest cosine to another row, [n]; −∞ for a lone one."""
    nearest = units.new_empty(len(units))
    for start in range(0, len(units), _BLOCK):
        cosines = units[start : start + _BLOCK] @ units.T
        cosines.diagonal(start).fill_(-torch.inf)
        nearest[start : start + _BLOCK] = cosines.amax(1)
    return nearest
