"""Run the engine and write down what a caller never sees: logits, caches after prefill, keep decisions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest.mock import patch

import torch

from pipeline.engine import Answer, Request, VideoLLM, decode, llm, scheduler
from pruning import Kept, Pruner, PruningConfig, StagePlan, make_pruner


@dataclass
class Decision:
    """What one stage kept of one video: places among the original N, and merged values if there were any."""

    index: torch.Tensor
    values: torch.Tensor | None


@dataclass
class Trace:
    """One request: plan, logits [V] before each token, keys and values of each layer, decisions by stage."""

    plan: StagePlan | None = None
    logits: list[torch.Tensor] = field(default_factory=list)
    cache: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    decisions: dict[int, Decision] = field(default_factory=dict)


class RecordingPruner:
    """Passes everything on to a pruner and notes its decisions under the requests' seeds."""

    def __init__(self, pruner: Pruner, traces: dict[int, Trace]):
        self._pruner = pruner
        self._traces = traces
        self.name = pruner.name
        self.needs = pruner.needs
        self.plan = pruner.plan

    def prune_input(self, videos):
        return self._note(0, videos, self._pruner.prune_input(videos))

    def prune_layer(self, stage, videos):
        return self._note(stage, videos, self._pruner.prune_layer(stage, videos))

    def _note(self, stage: int, videos, decisions: list[Kept]) -> list[Kept]:
        for video, kept in zip(videos, decisions, strict=True):
            values = None if kept.values is None else kept.values.clone()
            self._traces[video.seed].decisions[stage] = Decision(video.index[kept.keep].clone(), values)
        return decisions


def answer_traced(
    model: VideoLLM, requests: Sequence[Request], pruning: PruningConfig, pruner: Pruner | None = None
) -> tuple[list[Answer], list[Trace]]:
    """`model.answer` with a trace of each request; the requests' seeds must be all different.

    `pruner` replaces the one that the config describes.
    """
    traces = {request.seed: Trace() for request in requests}
    assert len(traces) == len(requests)
    sampler_of: dict[int, Trace] = {}
    prefill, choose = scheduler.prefill, decode.choose_tokens

    def traced_prefill(family, pruner, pack, videos, prefixes):
        cache, logits = prefill(family, pruner, pack, videos, prefixes)
        for row, sequence in enumerate(pack):
            trace = traces[sequence.request.seed]
            sampler_of[id(sequence.sampler)] = trace
            trace.plan = sequence.plan
            layers = range(family.decoder.shape.layers)
            trace.cache = [tuple(part.clone() for part in cache.entries(layer, row)) for layer in layers]
        return cache, logits

    def traced_choose(logits, samplers):
        for row, sampler in zip(logits, samplers, strict=True):
            sampler_of[id(sampler)].logits.append(row.clone())
        return choose(logits, samplers)

    with (
        patch.object(scheduler, "prefill", traced_prefill),
        patch.object(decode, "choose_tokens", traced_choose),
        patch.object(llm, "make_pruner", lambda config: RecordingPruner(pruner or make_pruner(config), traces)),
    ):
        answers = model.answer(requests, pruning)
    return answers, [traces[request.seed] for request in requests]
