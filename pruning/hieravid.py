"""HieraVid (arXiv 2604.01881): segment, frame and layer level pruning composed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pruning.budget import split_budgets
from pruning.merge import merge_repeats
from pruning.protocol import Kept, Needs, StagePlan, VideoGrid, VideoTokens
from pruning.relevance import relevance
from pruning.schedule import author_shape, geometric_shape, plan_input_only, plan_stages
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
    """Merges repeats at the input, then keeps relevant and diverse tokens of each segment in later stages.

    Levels may be left out. Without "segment" nothing merges and the whole video is one segment;
    without "frame" what stays in a segment is evenly spaced, and as large a share in each; without
    "layer" there is one stage, at the input.
    """

    name = "hieravid"

    def __init__(self, config: PruningConfig) -> None:
        """Take the options from `config`; its retention is not read, `plan` gets one for each request.

        Raises ValueError if the config names a calibration file that has not been applied to it.
        """
        if config.calibration not in (None, "auto"):
            raise ValueError(f"calibration {config.calibration!r} has to be read and applied first")
        self.config = config
        self._has_segments = "segment" in config.levels
        self._has_frame_level = "frame" in config.levels
        self._has_stages = "layer" in config.levels
        self._selection = config.selection if self._has_frame_level else "uniform"
        self.needs = Needs(last_token_attention=self._has_stages and self._selection != "uniform")

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """Four stages whose mean kept share over the layers is `retention` (Level 3)."""
        config = self.config
        if not self._has_stages:
            return plan_input_only(grid, num_layers, retention)
        shape = author_shape(retention) if config.shape == "author" else geometric_shape(config.gamma)
        return plan_stages(grid.tokens, num_layers, retention, shape)

    @torch.no_grad()
    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Segment each video and merge repeats down to its first count (Level 1).

        Where the repeats run out before that, or may not all merge, the frame level removes the rest
        with equal relevance.
        """
        kept = [self._merge(video) if self._has_segments else _whole(video) for video in videos]
        over = [i for i, k in enumerate(kept) if k.keep.numel() > videos[i].plan.counts[0]]
        if over:
            live = [kept[i] for i in over]
            features = [videos[i].hidden if k.values is None else k.values for i, k in zip(over, live, strict=True)]
            totals = [videos[i].plan.counts[0] for i in over]
            keeps, states = self._reduce(features, None, [k.state for k in live], totals)
            for i, k, keep, state in zip(over, live, keeps, states, strict=True):
                values = None if k.values is None else k.values[keep]
                kept[i] = Kept(k.keep[keep], values, state, k.segment_starts, merged_into=k.merged_into)
        for k in kept:
            if k.merged_into is not None:
                k.merged_into = _without_dropped(k.merged_into, k.keep)
        return kept

    @torch.no_grad()
    def prune_layer(self, stage: int, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Keep each segment's share of the stage's count by relevance and diversity (Level 2).

        Raises ValueError if a video comes without the state of its last stage, or without attention
        although it is needed.
        """
        states = [_state(video) for video in videos]
        relevances = [self._relevance(v) for v in videos] if self.needs.last_token_attention else None
        totals = [video.plan.counts[stage] for video in videos]
        keeps, states = self._reduce([v.hidden for v in videos], relevances, states, totals)
        return [Kept(keep, state=state) for keep, state in zip(keeps, states, strict=True)]

    def _merge(self, video: VideoTokens) -> Kept:
        """Level 1 as far as there are repeats that may merge: keeps the first count or more."""
        config = self.config
        cut = segment_video(video.hidden, video.grid, config.tau, config.beta, config.segments)
        leaving = video.grid.tokens - video.plan.counts[0]
        least = video.grid.tokens - int(config.merge_share * leaving)
        merged = merge_repeats(video.hidden, cut.similarity, cut.starts, least, config.merge_across_segments)
        segments = cut.frame_segments()[merged.rows // video.grid.positions]
        lengths = segments.bincount(minlength=len(cut.starts)).tolist()
        state = HieraVidState(segments, tuple(lengths), cut.values, cut.scores)
        into = merged.into if video.is_traced else None
        return Kept(merged.rows, merged.values, state, cut.starts, merged_into=into)

    def _relevance(self, video: VideoTokens) -> torch.Tensor:
        if video.attention is None:
            raise ValueError("hieravid needs the last prompt token's attention at every stage layer")
        return relevance(video.attention, self.config.relevance_sign, self.config.relevance_transform)

    def _reduce(
        self,
        features: Sequence[torch.Tensor],
        relevances: Sequence[torch.Tensor] | None,
        states: Sequence[HieraVidState],
        totals: Sequence[int],
    ) -> tuple[list[torch.Tensor], list[HieraVidState]]:
        """Bring each video down to its total (Level 2): the rows that stay, and the states after.

        `relevances` None is equal relevance for all, which ranks nothing: what would take the most
        relevant tokens then takes evenly spaced ones.
        """
        config = self.config
        lengths = [state.lengths for state in states]
        # Without scores a segment's share is the stage's.
        scores = [state.scores if self._has_frame_level else (0.0,) * len(state.scores) for state in states]
        is_exact = config.budget_coupling == "exact"
        counts = split_budgets(lengths, totals, [state.values for state in states], scores, is_exact)
        selection = self._selection
        if relevances is None:
            relevances = [torch.ones(len(feature), device=feature.device) for feature in features]
            selection = "uniform" if selection == "relevance" else selection
        keeps = select_tokens(
            features,
            relevances,
            lengths,
            counts,
            config.max_block,
            config.dpp_epsilon,
            projection=config.projection,
            selection=selection,
        )
        return keeps, [state.after(keep, count) for state, keep, count in zip(states, keeps, counts, strict=True)]


def _whole(video: VideoTokens) -> Kept:
    """All tokens, as one segment."""
    rows = torch.arange(video.grid.tokens, device=video.hidden.device)
    state = HieraVidState(torch.zeros_like(rows), (video.grid.tokens,), (0.0,), (0.0,))
    return Kept(rows, state=state, merged_into=rows if video.is_traced else None)


def _without_dropped(into: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`into` [n], the row that each row lives on in, with −1 where that row is not in `keep`."""
    lives = torch.zeros(len(into), dtype=torch.bool, device=into.device)
    lives[keep] = True
    return into.masked_fill(~lives[into], -1)


def _state(video: VideoTokens) -> HieraVidState:
    if not isinstance(video.state, HieraVidState):
        raise ValueError("a later stage of hieravid needs the state that its last stage returned")
    return video.state
