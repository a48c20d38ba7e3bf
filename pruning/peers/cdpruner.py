"""CDPruner (arXiv 2506.10967, NeurIPS 2025): a determinantal point process conditioned on the instruction.

The rule: with s_ij the cosine of two visual tokens after the projector and r_i the relevance of token i to the
instruction, the kernel is L_ij = r̃_i · s_ij · r̃_j over all visual tokens, and the kept subset is the greedy MAP
of the DPP (Chen et al. 2018). r_i is the mean cosine of a visual with the text embeddings, and r̃ is r scaled to
0..1 (min-max; the authors' code adds 1e-6 on top of the fraction, so that no token has weight 0). Parameters:
none beside the count; the paper's θ, which would weigh relevance against diversity, is left at its plain form.

Where it adapts:
- the paper embeds text with CLIP's text tower. SigLIP's is no part of these checkpoints, and the language model
  has none: relevance is taken in the language model's input space instead, between a projected visual token and
  the input embeddings of the prompt's tokens (its text alone, no template), mean over them. The authors' code
  negates the cosines, which mends a known inversion in CLIP's dense features; in this space nothing is inverted
  and the paper's own definition stands.
- all frames of a video are one set. The kernel is N × N, and the process needs K × N more: 722 MB and 217 MB at
  13,440 tokens and 30 %. That is what the method costs.
- past the rank of the kernel the gains are rounding noise: the rest is filled by relevance.
Constant relevance (or an empty prompt) counts as 1 for all.
"""

from __future__ import annotations

import torch

from pruning.dpp import greedy_map
from pruning.peers.input_only import InputOnly
from pruning.protocol import Needs, VideoTokens
from pruning.vectors import unit

RELEVANCE_FLOOR = 1e-6


class CDPruner(InputOnly):
    """Keeps diverse tokens that are relevant to the prompt."""

    name = "cdpruner"
    needs = Needs(prompt=True)

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """Greedy MAP on the conditional kernel of the whole video; raises ValueError without a prompt."""
        if video.prompt is None:
            raise ValueError("cdpruner needs the input embeddings of the prompt")
        units = unit(video.hidden)
        relevance = _relevance(units, unit(video.prompt))
        kernel = units @ units.T
        # A token's cosine with itself is exactly 1, or 0 for a zero vector: equal relevance then ties by index.
        kernel.diagonal().round_()
        kernel *= relevance.unsqueeze(1)
        kernel *= relevance.unsqueeze(0)
        return greedy_map(kernel.unsqueeze(0), [count], relevance=relevance.unsqueeze(0))[0].nonzero().squeeze(1)


def _relevance(units: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """r̃ [n] from unit vectors: tokens [n, d] and prompt [m, d]."""
    if len(prompt) == 0:
        return units.new_ones(len(units))
    cosines = units @ prompt.mean(0)
    low, high = cosines.aminmax()
    scaled = (cosines - low + RELEVANCE_FLOOR) / (high - low)
    return torch.where(high > low, scaled, 1.0)
