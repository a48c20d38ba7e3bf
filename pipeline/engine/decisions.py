"""What a pruner is shown at a stage, and whether what it decides keeps to its plan."""

from __future__ import annotations

from collections.abc import Sequence as Several
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.families import Family
from pipeline.engine.sequence import Sequence
from pruning import Kept, Pruner, VideoTokens


class Decision(NamedTuple):
    """What was kept at a stage of the live tokens `index`, int64 [n], their places among the original N."""

    stage: int
    index: torch.Tensor
    kept: Kept


def view(sequence: Sequence, hidden: torch.Tensor, index: torch.Tensor, state: Any = None) -> VideoTokens:
    """A sequence's live video tokens, `hidden` [n, d] at the places `index` among the N, as the pruner sees them."""
    return VideoTokens(
        grid=sequence.grid,
        plan=sequence.plan,
        hidden=hidden,
        index=index,
        seed=sequence.request.seed,
        is_traced=sequence.tracer is not None,
        state=state,
    )


def input_view(family: Family, pruner: Pruner, sequence: Sequence, video: EncodedVideo) -> VideoTokens:
    """A sequence's video tokens before the first layer, with what the pruner needs beside them."""
    shown = view(sequence, video.tokens, torch.arange(video.tokens.shape[0], device=video.tokens.device))
    if pruner.needs.encoder_attention:
        shown.encoder_attention = video.attention
    if pruner.needs.prompt:
        shown.prompt = family.embed_user_prompt(sequence.request.prompt)
    return shown


def decide(pruner: Pruner, stage: int, sequences: Several[Sequence], views: list[VideoTokens]) -> list[Decision]:
    """Ask the pruner about the videos of some sequences; RuntimeError if a decision breaks the plan."""
    kept = pruner.prune_layer(stage, views) if stage else pruner.prune_input(views)
    decisions = [Decision(stage, shown.index, own) for shown, own in zip(views, kept, strict=True)]
    for sequence, decision in zip(sequences, decisions, strict=True):
        accept(pruner, sequence, decision)
    return decisions


def accept(pruner: Pruner, sequence: Sequence, decision: Decision) -> None:
    """Take a decision over into a sequence; RuntimeError if it breaks the plan."""
    stage, index, kept = decision
    if kept.plan is not None:
        try:
            sequence.revise(stage, kept.plan)
        except ValueError as error:
            raise RuntimeError(f"pruner {pruner.name!r} revised its plan at stage {stage}: {error}") from error
    if kept.keep.shape[0] != sequence.plan.counts[stage]:
        raise RuntimeError(
            f"pruner {pruner.name!r} kept {kept.keep.shape[0]} tokens at stage {stage}, "
            f"its plan says {sequence.plan.counts[stage]}"
        )
    if kept.segment_starts is not None:
        sequence.segments = len(kept.segment_starts)
    if sequence.tracer is not None:
        sequence.tracer.note(sequence.plan.layers[stage], index, kept)


def stage_at(sequence: Sequence, layer: int, live: int) -> int | None:
    """The stage at which some of a sequence's `live` video tokens leave before `layer`'s MLP, None if all stay."""
    plan = sequence.plan
    if layer not in plan.layers:
        return None
    stage = plan.layers.index(layer)
    return stage if plan.counts[stage] < live else None


def parting_layer(pruner: Pruner, sequence: Sequence) -> int | None:
    """The first layer whose attention lets the prompt say which video tokens stay, None if there is none."""
    if not pruner.needs.last_token_attention:
        return None
    plan = sequence.plan
    stages = zip(plan.layers[1:], pairwise(plan.counts), strict=True)
    return next((layer for layer, (before, after) in stages if after < before), None)
