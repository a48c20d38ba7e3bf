"""A method may give up tokens that it was admitted with, once it has seen the video; never take more."""

import dataclasses

import pytest
import torch

from pipeline.engine import Request
from pruning import Kept, PruningConfig, StagePlan
from tests.engine.pruners import EvenPruner
from tests.engine.recording import answer_traced
from tests.engine.reference import masked_run, prompt_inputs
from tests.engine.videos import make_video

GENEROUS = ((0, 2, 3), (0.9, 0.6, 0.4))
FRUGAL = ((0, 1, 3), (0.7, 0.5, 0.2))


class RevisingPruner(EvenPruner):
    """Is admitted with one plan and turns to another one at the input; the videos of odd seeds stay as admitted."""

    def __init__(self, admitted=GENEROUS, revised=FRUGAL):
        super().__init__(*admitted)
        self.revised = revised

    def decide(self, stage, video):
        if stage or video.seed % 2:
            return super().decide(stage, video)
        layers, shares = self.revised
        counts = tuple(int(video.grid.tokens * share) for share in shares)
        plan = StagePlan(video.grid.tokens, video.plan.num_layers, layers, counts)
        return Kept(self.spread(video, counts[0]), plan=plan)


def requests_of(sizes=(7, 4, 2, 5), max_new_tokens=12):
    return [
        Request(make_video(frames, seed=n), "what happens", max_new_tokens=max_new_tokens - n, seed=n)
        for n, frames in enumerate(sizes)
    ]


def test_a_revised_plan_is_answered_like_one_admitted_from_the_start(pair):
    llm, _ = pair
    requests = requests_of()
    revised = llm.answer(requests, RevisingPruner())
    frugal = llm.answer(requests, EvenPruner(*FRUGAL))
    generous = llm.answer(requests, EvenPruner(*GENEROUS))
    for number, answer in enumerate(revised):
        expected = (generous if number % 2 else frugal)[number]
        assert answer.token_ids == expected.token_ids
        for name in ("stage_layers", "stage_tokens", "retention_achieved", "flops_ratio", "kv_ratio"):
            assert getattr(answer.stats, name) == getattr(expected.stats, name)
        assert answer.stats.stage_layers == list((GENEROUS if number % 2 else FRUGAL)[0])


def test_cache_and_logits_are_those_of_the_revised_plan(pair):
    llm, reference = pair
    requests = requests_of()
    answers, traces = answer_traced(llm, requests, PruningConfig(), RevisingPruner())
    for request, answer, trace in zip(requests, answers, traces, strict=True):
        inputs = prompt_inputs(llm, reference, request)
        expected = masked_run(reference, inputs, answer.token_ids, trace.plan, trace.decisions)
        for own, other in zip(trace.cache, expected.cache, strict=True):
            for own_part, other_part in zip(own, other, strict=True):
                torch.testing.assert_close(own_part, other_part, atol=1e-3, rtol=0)
        torch.testing.assert_close(torch.stack(trace.logits), expected.logits, atol=1e-3, rtol=0)


def test_a_later_stage_may_revise_and_add_stages(llm):
    class Later(EvenPruner):
        def decide(self, stage, video):
            count = video.plan.counts[stage]
            if stage != 1:
                return super().decide(stage, video)
            layers, counts = (0, 2, 3, 5), (*video.plan.counts[:1], count - 3, 19, 2)
            return Kept(self.spread(video, count - 3), plan=StagePlan(video.grid.tokens, 8, layers, counts))

    request = Request(make_video(3), "what", max_new_tokens=4)
    [answer] = llm.answer([request], Later(*GENEROUS))
    assert answer.stats.stage_layers == [0, 2, 3, 5]
    assert answer.stats.stage_tokens == [43, 25, 19, 2]
    direct = EvenPruner((0, 2, 3, 5))
    direct.plan = lambda grid, layers, retention: StagePlan(grid.tokens, layers, (0, 2, 3, 5), (43, 25, 19, 2))
    assert answer.token_ids == llm.answer([request], direct)[0].token_ids


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (0, {"num_tokens": 47}, "it is for 47 tokens and 8 layers"),
        (0, {"num_layers": 7}, "it is for 48 tokens and 7 layers"),
        (0, {"layers": (1, 2, 3)}, "changes stages before 0 or the layer of stage 0"),
        (1, {"counts": (42, 28, 19)}, "changes stages before 1"),
        (1, {"layers": (0, 3, 4)}, "or the layer of stage 1"),
        (0, {"layers": (0, 3, 3)}, "must ascend below 8"),
        (0, {"layers": (0, 2, 8)}, "must ascend below 8"),
        (0, {"layers": (0, 2)}, "must ascend"),
        (0, {"counts": (43, 19, 28)}, "its counts .* fall"),
        (0, {"counts": (44, 28, 19)}, "lets 44 tokens into the attention of layer 0, admitted were 43"),
        (0, {"layers": (0, 4, 5)}, "lets 43 tokens into the attention of layer 3, admitted were 28"),
        (1, {"counts": (43, 28, 20)}, "lets 20 tokens into the attention of layer 4, admitted were 19"),
        (0, {"counts": (40, 28, 19)}, "kept 43 tokens at stage 0, its plan says 40"),
    ],
)
def test_a_revision_that_does_not_fit_is_caught(llm, stage, changes, message):
    class Wrong(EvenPruner):
        def decide(self, now, video):
            kept = super().decide(now, video)
            plan = dataclasses.replace(video.plan, **changes)
            return dataclasses.replace(kept, plan=plan) if now == stage else kept

    with pytest.raises(RuntimeError, match=f"^pruner 'even' .*{message}"):
        llm.answer([Request(make_video(3), "what", max_new_tokens=2)], Wrong(*GENEROUS))
