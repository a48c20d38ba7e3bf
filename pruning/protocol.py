"""What a pruning method and the engine say to each other.

The engine knows no method by name. At admission it asks for a `StagePlan`, which fixes every
token count; at the input and at each stage layer it hands over the live video tokens of all
requests in the batch at once and gets back which of them stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class VideoGrid:
    """The layout of one video's tokens: `frames` x `positions`, row-major in time.

    `frames` counts the model's own time steps (after its temporal merging). `constants` lists
    positions inside a frame that carry the same learnt vector everywhere (LLaVA-Video's grid
    newlines): they count as tokens, but say nothing about the picture. `columns` is how many
    positions make one row of the picture (None where they form no rectangle).
    """

    frames: int
    positions: int
    constants: tuple[int, ...] = ()
    columns: int | None = None

    @property
    def tokens(self) -> int:
        """N, the number of video tokens before any pruning."""
        return self.frames * self.positions


@dataclass(frozen=True)
class StagePlan:
    """How many video tokens live from each stage on; fixed at admission.

    `layers[s]` is the decoder layer where stage s starts (`layers[0] == 0`, ascending) and
    `counts[s]` the number of video tokens that enter that layer's MLP and all until the next
    stage. Stage 0 acts on the input embeddings, later stages after attention and before the MLP.
    """

    num_tokens: int
    num_layers: int
    layers: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def retention(self) -> float:
        """Mean over the decoder layers of (video tokens entering the MLP) / N."""
        ends = (*self.layers[1:], self.num_layers)
        kept = sum((end - start) * count for start, end, count in zip(self.layers, ends, self.counts, strict=True))
        return kept / (self.num_layers * self.num_tokens)

    def mlp_tokens(self) -> list[int]:
        """Video tokens that enter the MLP of each layer, `num_layers` long."""
        ends = (*self.layers[1:], self.num_layers)
        tokens: list[int] = []
        for start, end, count in zip(self.layers, ends, self.counts, strict=True):
            tokens += [count] * (end - start)
        return tokens

    def attention_tokens(self) -> list[int]:
        """Video tokens that enter the attention of each layer (and its KV cache)."""
        mlp = self.mlp_tokens()
        return [self.counts[0], *mlp[:-1]]


@dataclass(frozen=True)
class Needs:
    """What a pruner wants computed for it; what it does not name costs nothing.

    `last_token_attention` comes at later stages, `encoder_attention` and `prompt` at the input.
    """

    last_token_attention: bool = False
    encoder_attention: bool = False
    prompt: bool = False


@dataclass
class VideoTokens:
    """One request's live video tokens, as a pruner sees them at one stage.

    `hidden` is [n, d]: input embeddings at stage 0, else the residual stream after attention
    (not normed). `index` is [n] int64, ascending: each token's place among the original N.
    `attention` is [n] float32 or None: the last prompt token's attention to each live token,
    softmax over all keys, mean over heads. `encoder_attention` is [n] float32 or None: the share of
    attention that each token's place received in the vision tower's last layer, mean over queries
    and heads. `prompt` is [m, d] or None: the input embeddings of the user's prompt. `is_traced`
    asks for `Kept.merged_into`. `state` is what the pruner returned last time.
    """

    grid: VideoGrid
    plan: StagePlan
    hidden: torch.Tensor
    index: torch.Tensor
    seed: int = 0
    attention: torch.Tensor | None = None
    encoder_attention: torch.Tensor | None = None
    prompt: torch.Tensor | None = None
    is_traced: bool = False
    state: Any = None


@dataclass
class Kept:
    """A pruner's decision on one video at one stage.

    `keep` is [K] int64, ascending rows of `VideoTokens.hidden`. `values` ([K, d], the same dtype
    as hidden) replaces the kept rows where tokens were merged; None leaves them as they are.
    `segment_starts` are the first frames of the segments that the method found, None if it has
    none. `plan` takes the admitted plan's place from this stage on, for a method whose split
    between stages depends on the video: it may not let more tokens into any layer's attention than
    the admitted one. `merged_into` is [n] int64 where the input is traced: for each row of `hidden`
    the row that it lives on in, itself for a survivor, −1 for a dropped one.
    """

    keep: torch.Tensor
    values: torch.Tensor | None = None
    state: Any = None
    segment_starts: tuple[int, ...] | None = None
    plan: StagePlan | None = None
    merged_into: torch.Tensor | None = None


class UnreachableRetentionError(ValueError):
    """A retention that a method cannot reach on this model; `minimum` is the least that it can."""

    def __init__(self, method: str, retention: float, minimum: float) -> None:
        """Name the method; retentions are means over the decoder layers."""
        super().__init__(f"{method} cannot reach a retention of {retention:g} here, its minimum is {minimum:.4g}")
        self.minimum = minimum


@runtime_checkable
class Pruner(Protocol):
    """A pruning method. Stateless between calls: what it must remember travels in `Kept.state`.

    Every call takes the videos of the whole batch, so that a method can treat them together;
    its answer for one video must not depend on the others.
    """

    name: str
    needs: Needs

    def plan(self, grid: VideoGrid, num_layers: int, retention: float) -> StagePlan:
        """Fix all token counts for a video at a mean-over-layers `retention` in (0, 1].

        Raises UnreachableRetentionError if the method cannot keep so little.
        """
        ...

    def prune_input(self, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Stage 0, on the LLM's input embeddings: keep `plan.counts[0]` tokens of each video."""
        ...

    def prune_layer(self, stage: int, videos: Sequence[VideoTokens]) -> list[Kept]:
        """Stage `stage` >= 1: keep `plan.counts[stage]` tokens of each video."""
        ...
