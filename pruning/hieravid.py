"""HieraVid (arXiv 2604.01881): segment, frame and layer level pruning composed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pruning.budget import split_budget
from pruning.merge import merge_repeats
from pruning.protocol import Kept, Needs, StagePlan, VideoGrid, VideoTokens
from pruning.relevance import relevance
from pruning.schedule import author_shape, geometric_shape, plan_stages
from pruning.segments import segment_video
from pruning.select import select_tokens

if TYPE_CHECKING:
    from pruning.config import PruningConfig


@dataclass(frozen=True)
class HieraVidState:
    """What a video carries from stage to stage.

    `segments` is [n] int64, the segment of each live token, non-decreasing. `lengths` are the live
    tokens of the S segments, `values` their v and `scores` their z, fixed before stage 0. The last
    three are on the host, so that later stages split budgets without waiting for the device.
    """

    segments: torch.Tensor
    lengths: tuple[int, ...]
    values: tuple[float, ...]
    scores: tuple[float, ...]

    def after(self, keep: torch.Tensor, counts: Sequence[int]) -> HieraVidState:
        """The state once only the rows `keep` live, `counts` of them in each segment."""
        return HieraVidState(self.segments[keep], tuple(counts), self.values, self.scores)


class HieraVid:
    """Merges repeats at the input, then keeps relevant and diverse tokens of each segment in later stages."""

    name = "hieravid"
    needs = Needs(last_token_attention=True)

    def __init__(self, config: PruningConfig) -> None:
        """Take the options from `config`; its retention is not read, `plan` gets one for each request."""
        self.config = config

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """Four stages whose mean kept share over the layers is `retention` (Level 3)."""
        config = self.config
        shape = author_shape(retention) if config.shape == "author" else geometric_shape(config.gamma)
        return plan_stages(grid.tokens, num_layers, retention, shape)

    @torch.no_grad()
    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Segment each video and merge repeats down to its first count (Level 1).

        Where the repeats run out before that, the frame level removes the rest with equal relevance.
        """
        merged = [self._merge(video) for video in videos]
        wanted = [video.plan.counts[0] for video in videos]
        over = [i for i, kept in enumerate(merged) if kept.keep.numel() > wanted[i]]
        if over:
            states = [merged[i].state for i in over]
            counts = [self._split(state, wanted[i]) for i, state in zip(over, states, strict=True)]
            features = [videos[i].hidden if merged[i].values is None else merged[i].values for i in over]
            equal = [torch.ones(len(feature), device=feature.device) for feature in features]
            for i, keep, count in zip(over, self._select(features, equal, states, counts), counts, strict=True):
                kept = merged[i]
                values = None if kept.values is None else kept.values[keep]
                merged[i] = Kept(kept.keep[keep], values, kept.state.after(keep, count), kept.segment_starts)
        return merged

    @torch.no_grad()
    def prune_layer(self, stage: int, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Keep each segment's share of the stage's count by relevance and diversity (Level 2).

        Raises ValueError if a video comes without attention or without the state of its last stage.
        """
        states = [_state(video) for video in videos]
        counts = [self._split(state, video.plan.counts[stage]) for state, video in zip(states, videos, strict=True)]
        keeps = self._select([v.hidden for v in videos], [self._relevance(v) for v in videos], states, counts)
        return [
            Kept(keep, state=state.after(keep, count)) for keep, state, count in zip(keeps, states, counts, strict=True)
        ]

    def _merge(self, video: VideoTokens) -> Kept:
        """Level 1 as far as there are repeats: keeps the first count or more."""
        config = self.config
        cut = segment_video(video.hidden, video.grid, config.tau, config.beta)
        rows, values = merge_repeats(
            video.hidden, cut.similarity, cut.starts, video.plan.counts[0], config.merge_across_segments
        )
        segments = cut.frame_segments()[rows // video.grid.positions]
        lengths = segments.bincount(minlength=len(cut.starts)).tolist()
        state = HieraVidState(segments, tuple(lengths), cut.values, cut.scores)
        return Kept(rows, values, state, cut.starts)

    def _split(self, state: HieraVidState, total: int) -> list[int]:
        exact = self.config.budget_coupling == "exact"
        return split_budget(state.lengths, total, state.values, state.scores, exact)

    def _relevance(self, video: VideoTokens) -> torch.Tensor:
        if video.attention is None:
            raise ValueError("hieravid needs the last prompt token's attention at every stage layer")
        return relevance(video.attention, self.config.relevance_sign, self.config.relevance_transform)

    def _select(
        self,
        features: Sequence[torch.Tensor],
        relevances: Sequence[torch.Tensor],
        states: Sequence[HieraVidState],
        counts: Sequence[Sequence[int]],
    ) -> list[torch.Tensor]:
        lengths = [state.lengths for state in states]
        return select_tokens(features, relevances, lengths, counts, self.config.max_block, self.config.dpp_epsilon)


def _state(video: VideoTokens) -> HieraVidState:
    if not isinstance(video.state, HieraVidState):
        raise ValueError("a later stage of hieravid needs the state that its last stage returned")
    return video.state
