"""FrameFusion (arXiv 2501.01986, ICCV 2025): merge what repeats in shallow layers, then prune by attention.

The rule, with S = 0.6 and N_th = 0.1 as published:
- merging. A token whose cosine to its live predecessor in time at the same position reaches S folds into it; a
  run of such tokens becomes the plain mean of the run, in the place of its first. This goes on at successive
  layers until fewer than N_th of the live video tokens fold. If more could fold than the budget asks for, only
  the most alike do, and nothing is left to prune.
- pruning. In the next layer, once, the tokens with the most attention from the last token of the prompt stay
  (heads averaged), as many as the rest of the budget allows for all layers from there on.
The budget is the mean over layers, so the more merges, the more tokens the pruning leaves.

Where it adapts:
- the authors merge before layer 0, after its attention, and after that of layers 1, 2, …; a stage cannot start
  inside layer 0, so here it is the input and then layers 1, 2, …. Every layer counts once, with the tokens that
  enter its MLP, and the last count is rounded: |Σ counts − r·L·N| ≤ L / 2.
- counts depend on the video. The admitted plan is a bound on any course that the rule can take: at layer l no
  more than max(round(r·N), min(m_l, (r·L·N − (L − l − 1)) / (l + 1))), with m_0 = N and m_l+1 = m_l − ⌈m_l / 10⌉,
  as merging only goes on where a tenth folded, and never beyond what leaves each later layer one token. Each
  stage hands back the plan that now holds; its mean is r, that of the bound is more.
- the authors' code stops with an error where merging leaves the pruning nothing to spend. Counts must hold for any
  video, so: where a further merge would leave the later layers less than one token each, pruning takes its turn;
  and where all that reaches S at the input is too little for that, the most alike tokens below S merge, too, down
  to what the budget can bear (r·L below 1, or nearly, and few repeats). The first frame has nothing to merge into:
  a retention below (P + L − 1) / (L·N) is unreachable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pruning.peers.fastv import most_attended
from pruning.peers.groups import group_means
from pruning.peers.ranking import largest
from pruning.protocol import Kept, Needs, StagePlan, UnreachableRetentionError, VideoGrid, VideoTokens
from pruning.schedule import check_retention
from pruning.vectors import cosine

SIMILARITY_THRESHOLD = 0.6
# N_th as a fraction, so that "a tenth of the tokens" is exact.
MERGING_SHARE = (1, 10)
# What sums of floats may be off by.
_SLACK = 1e-6


@dataclass(frozen=True)
class FrameFusionPlan(StagePlan):
    """A plan, or a bound on plans, that knows its `budget` r·L·N: layers · tokens."""

    budget: float

    def then(self, *counts: int) -> FrameFusionPlan:
        """The plan with these counts at layers 0, 1, …"""
        return FrameFusionPlan(self.num_tokens, self.num_layers, tuple(range(len(counts))), counts, self.budget)


class FrameFusion:
    """Merges repeats at the input and in the first layers, then prunes once."""

    name = "framefusion"
    needs = Needs(last_token_attention=True)

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> FrameFusionPlan:
        """The bound that every course stays under; raises UnreachableRetentionError."""
        check_retention(retention)
        tokens, budget = grid.tokens, retention * num_layers * grid.tokens
        least = grid.positions + num_layers - 1
        if budget < least - _SLACK:
            raise UnreachableRetentionError(self.name, retention, least / (num_layers * tokens))
        counts = []
        merged = tokens
        for layer in range(num_layers):
            affordable = math.floor((budget - (num_layers - layer - 1)) / (layer + 1) + _SLACK)
            counts.append(max(_nearest(retention * tokens + _SLACK), min(merged, affordable)))
            merged -= _tenth(merged)
        return FrameFusionPlan(tokens, num_layers, tuple(range(num_layers)), tuple(counts), max(budget, least))

    @torch.no_grad()
    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Merge on the input embeddings."""
        return [self._decide(video, 0, may_merge=True) for video in videos]

    @torch.no_grad()
    def prune_layer(self, stage: int, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Merge on, or prune; `state` says whether merging still goes on."""
        return [self._decide(video, stage, may_merge=video.state) for video in videos]

    def _decide(self, video: VideoTokens, stage: int, may_merge: bool) -> Kept:
        """Stage s acts at layer s: the counts before it are what the budget has paid for."""
        plan = video.plan
        if not isinstance(plan, FrameFusionPlan):
            raise ValueError("framefusion needs the plan that it made")
        past = plan.counts[:stage]
        left, layers, live = plan.budget - sum(past), plan.num_layers - stage, len(video.hidden)
        if may_merge:
            order, similarity = _to_predecessor(video)
            folding = int((similarity >= SIMILARITY_THRESHOLD).sum())
            if stage == 0:
                folding = max(folding, live - math.floor(left - (layers - 1) + _SLACK))
            if counts := _merging_counts(live, folding, left, layers):
                keep, values, into = _fold(video, order, similarity, live - counts[0])
                goes_on = len(counts) > 1 and folding >= _tenth(live)
                return Kept(keep, values, goes_on, plan=plan.then(*past, *counts), merged_into=into)
        count = min(live, max(1, _nearest(left / layers)))
        return Kept(most_attended(video, count, self.name), state=False, plan=plan.then(*past, count))


def _merging_counts(live: int, folding: int, left: float, layers: int) -> tuple[int, ...]:
    """Tokens from this layer on, if `folding` of `live` tokens may fold and `layers` layers share the budget `left`.

    One count if merging alone meets the budget; else this layer's and that of pruning in the next one, which
    stands unless merging goes on; none where this layer's would leave less than a token for each later layer.
    """
    if live - folding <= left / layers + _SLACK:
        return (min(live, _nearest(left / layers)),)
    left -= live - folding
    if layers == 1 or left < layers - 1 - _SLACK:
        return ()
    return (live - folding, max(1, _nearest(left / (layers - 1))))


def _to_predecessor(video: VideoTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Live rows by position, then time, and each one's cosine to the row before (−∞ for a position's first)."""
    positions = video.grid.positions
    place = video.index % positions
    order = (place * video.grid.frames + video.index // positions).argsort()
    tokens, place = video.hidden[order], place[order]
    similarity = torch.full((len(order),), -torch.inf, device=tokens.device)
    similarity[1:] = cosine(tokens[1:], tokens[:-1]).masked_fill(place[1:] != place[:-1], -torch.inf)
    return order, similarity


def _fold(
    video: VideoTokens, order: torch.Tensor, similarity: torch.Tensor, folds: int
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Fold the `folds` tokens most alike to their predecessors; `keep`, `values` and `merged_into` of Kept."""
    if folds == 0:
        return torch.arange(len(order), device=order.device), None, None
    is_head = torch.ones(len(order), dtype=torch.bool, device=order.device)
    is_head[largest(similarity, folds)] = False
    heads, run = order[is_head], is_head.cumsum(0) - 1
    means = group_means(video.hidden[order], run, len(heads))
    into = torch.empty_like(order).index_put((order,), heads[run]) if video.is_traced else None
    keep, by_index = heads.sort()
    return keep, means[by_index].to(video.hidden.dtype), into


def _nearest(number: float) -> int:
    """The nearest integer, halves up."""
    return math.floor(number + 0.5)


def _tenth(tokens: int) -> int:
    """The fewest of `tokens` tokens that must fold for merging to go on."""
    share, whole = MERGING_SHARE
    return -(-tokens * share // whole)
