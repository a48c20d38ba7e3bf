"""VidCom², Video Compression Commander (arXiv 2505.14454, EMNLP 2025): unique frames get more tokens.

Two steps, from the authors' released code where the paper leaves form open:
- uniqueness. On the half of the channels with the lowest variance over the video, tokens are scaled to length
  1. A token's likeness to a centre c is the sum over α of exp(−|x − c|² / 2α), α = 2⁻³ … 2¹. Centres are the mean
  token of the video and the mean token of its frame.
- frame budgets. A frame's uniqueness u_t is minus the mean likeness of its tokens to the video's centre;
  σ = softmax(u / 0.01) over frames, and frame t keeps the share r·(1 + σ_t − mean σ), at most 1, of its tokens.
- in each frame stay the tokens of least likeness to both centres (the sum of the two).

Where it adapts: the authors round each frame's count by itself, at least 1, so that the total drifts. Here the
counts come from the same shares by largest remainder and add up to round(r·N); a frame has at least 1 while
there is one for each, and else the frames of the largest shares have it. LLaVA-Video's grid newlines are tokens
like any other, where the authors keep them all on top of the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pruning.peers.input_only import InputOnly
from pruning.peers.ranking import ranks
from pruning.protocol import VideoTokens
from pruning.vectors import unit

CHANNEL_SHARE = 0.5
ALPHAS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


class VidCom2(InputOnly):
    """Keeps the tokens that are least like their video and frame, more of them in unique frames."""

    name = "vidcom2"

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """Frame budgets by uniqueness, then the least typical tokens of each frame."""
        frames, positions = video.grid.frames, video.grid.positions
        tokens = _quiet_channels(video.hidden).reshape(frames, positions, -1)
        to_video = _likeness(tokens, tokens.mean((0, 1)))
        to_frame = _likeness(tokens, tokens.mean(1, keepdim=True))
        unique = (-to_video.mean(1) / TEMPERATURE).softmax(0)
        shares = count / len(video.hidden) * (1 + unique - unique.mean())
        counts = frame_counts((shares.clamp(max=1) * positions).tolist(), count, positions)
        is_kept = ranks(-to_video - to_frame) < torch.tensor(counts, device=tokens.device).unsqueeze(1)
        return is_kept.flatten().nonzero().squeeze(1)


def frame_counts(wanted: Sequence[float], total: int, most: int) -> list[int]:
    """Integers near `wanted` that add up to `total`, by largest remainder (ties: the earlier frame).

    Each is at most `most`, and at least 1 where `total` suffices for that.
    """
    least = 1 if total >= len(wanted) else 0
    # 1e-4 is above the last bits of a float32 share: they must not decide what is whole, nor break a tie.
    counts = [min(max(math.floor(w + 1e-4), least), most) for w in wanted]
    while (spare := total - sum(counts)) != 0:
        step = 1 if spare > 0 else -1
        room = [t for t, k in enumerate(counts) if (k < most if spare > 0 else k > least)]
        room.sort(key=lambda t: -step * round(wanted[t] - counts[t], 4))
        for t in room[: abs(spare)]:
            counts[t] += step
    return counts


def _quiet_channels(hidden: torch.Tensor) -> torch.Tensor:
    """Unit vectors over the channels of least variance, [N, d/2] float32."""
    tokens = torch.nan_to_num(hidden.float())
    kept = max(1, int(CHANNEL_SHARE * tokens.shape[1]))
    channels = tokens.var(0, correction=0).argsort(stable=True)[:kept]
    return unit(tokens[:, channels])


def _likeness(tokens: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Σ_α exp(−|x − c|² / 2α) of `tokens` [T, P, c] to a centre that broadcasts, [T, P]."""
    distance = (tokens - centre).square().sum(-1)
    return torch.stack([(-distance / (2 * alpha)).exp() for alpha in ALPHAS]).sum(0)
