"""Prompts on one video share their prefix: it's computed once, and each gets what it would have got alone."""

import dataclasses
import itertools
from unittest.mock import patch

import pytest
import torch

from pipeline.engine import Request
from pipeline.engine.prefix import PrefixStore
from pruning import Kept, Needs, PruningConfig, StagePlan, make_pruner
from tests.engine.prefilled import admitted, counted_rows, prefill
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video

PROMPTS = ["what happens", "describe the video please, in one short sentence", "", "how many?"]
ATTENTION = Needs(last_token_attention=True)


class AttendingPruner(EvenPruner):
    """Keeps what the prompt attends to, after a stage that has nothing to remove; replaces values at every stage."""

    def __init__(self):
        super().__init__((0, 1, 3, 5), (0.8, 0.8, 0.5, 0.2), needs=ATTENTION)

    def decide(self, stage, video):
        count = video.plan.counts[stage]
        keep = self.spread(video, count) if stage == 0 else video.attention.topk(count).indices.sort().values
        assert video.state == {0: None, 2: 0, 3: 2}[stage]
        return Kept(keep, values=video.hidden[keep] * 0.9, state=stage)


class RevisingPruner(EvenPruner):
    """Turns to a more frugal plan at the input."""

    def decide(self, stage, video):
        kept = super().decide(stage, video)
        if stage:
            return kept
        counts = (video.plan.counts[0], max(1, video.plan.counts[1] // 2), 1)
        return dataclasses.replace(kept, plan=StagePlan(video.grid.tokens, video.plan.num_layers, (0, 1, 3), counts))


class PromptedPruner(EvenPruner):
    """Looks at the prompt at the input."""

    def __init__(self):
        super().__init__(needs=Needs(prompt=True))


def named(method):
    return lambda: make_pruner(PruningConfig(method=method))


# How each is made, the retention that it is asked for, and the layer after whose attention prompts part, None if never.
PRUNERS = {
    "hieravid": (named("hieravid"), 0.3, 2),
    "hieravid, unpruned": (named("hieravid"), 1.0, None),
    "framefusion, which merges all that must go": (named("framefusion"), 0.5, None),
    "random": (named("random"), 0.3, None),
    "none": (named("none"), 1.0, None),
    "stages without attention": (EvenPruner, 1.0, None),
    "a stage in the last layer": (lambda: EvenPruner((0, 7), (0.5, 0.2), needs=ATTENTION), 1.0, None),
    "attention from its third stage on": (AttendingPruner, 1.0, 3),
    "revised": (RevisingPruner, 1.0, None),
    "revised, with attention": (lambda: RevisingPruner(needs=ATTENTION), 1.0, 1),
}
pruners = pytest.mark.parametrize("name", PRUNERS)


def ask(prompt, frames=6, **options):
    return Request(
        make_video(frames, seed=frames), prompt, **{"max_new_tokens": 2, "video_key": f"v{frames}", **options}
    )


def same_as_alone(llm, make, retention, results):
    """Compare each with the sequence by itself, in kept tokens, cache and logits."""
    for own in results:
        sequence = own.sequence
        pruner = make()
        [alone] = prefill(llm, pruner, admitted(llm, [sequence.request], pruner, retention))
        assert alone.sequence.plan == sequence.plan
        assert alone.sequence.segments == sequence.segments
        if sequence.tracer:
            for field in ("alive_until", "merged_into", "segment"):
                assert (getattr(own.trace, field) == getattr(alone.trace, field)).all()
        for mine, its in zip(own.cache, alone.cache, strict=True):
            for part, other in zip(mine, its, strict=True):
                torch.testing.assert_close(part, other, atol=1e-4, rtol=0)
        torch.testing.assert_close(own.logits, alone.logits, atol=1e-4, rtol=0)


@pruners
@pytest.mark.parametrize("is_traced", [False, True])
def test_sharing_changes_nothing(llm, name, is_traced):
    make, retention, _ = PRUNERS[name]
    pruner = make()
    requests = [ask(prompt, is_traced=is_traced) for prompt in PROMPTS]
    requests[1:1] = [ask("another video", 3, is_traced=is_traced), ask("and again", 9, video_key=None)]
    same_as_alone(llm, make, retention, prefill(llm, pruner, admitted(llm, requests, pruner, retention)))


@pruners
def test_a_shared_prefix_is_decided_and_computed_once(llm, name):
    make, retention, parting = PRUNERS[name]
    pruner = make()
    inputs = []
    prune_input = pruner.prune_input
    pruner.prune_input = lambda videos: inputs.extend(videos) or prune_input(videos)
    sequences = admitted(llm, [ask(prompt) for prompt in PROMPTS], pruner, retention)
    with counted_rows() as rows:
        prefill(llm, pruner, sequences)
    assert len(inputs) == 1
    before = len(sequences[0].prompt.before)
    tails = sum(sequence.text_tokens - before for sequence in sequences)
    for layer in range(8):
        entering = [sequence.entering_tokens[layer] for sequence in sequences]
        video = entering[0] - sequences[0].text_tokens
        is_shared = parting is None or layer <= parting
        assert rows[layer] == (before + video + tails if is_shared else sum(entering))


@pruners
def test_later_packs_use_what_is_stored_as_long_as_somebody_waits(llm, name):
    make, retention, parting = PRUNERS[name]
    pruner = make()
    store = PrefixStore(pruner)
    first, *others, last = admitted(llm, [ask(prompt) for prompt in PROMPTS], pruner, retention)
    store.retain([*others, last])
    results = prefill(llm, pruner, [first], store)
    held = store.bytes
    assert held > 0
    shared_layers = range(8 if parting is None else parting + 1)
    for pack, is_waited_for in ((others, True), ([last], False)):
        store.retain([last] if is_waited_for else [])
        tails = sum(sequence.text_tokens - len(sequence.prompt.before) for sequence in pack)
        with counted_rows() as rows:
            results += prefill(llm, pruner, pack, store)
        assert [rows[layer] for layer in shared_layers] == [tails] * len(shared_layers)
        assert store.bytes == (held if is_waited_for else 0)
    same_as_alone(llm, make, retention, results)


def test_the_engine_computes_a_prefix_once_however_small_its_packs_are(llm):
    half = PruningConfig(method="uniform", retention=0.5)
    requests = [ask(prompt, max_new_tokens=1) for prompt in PROMPTS]
    small = dataclasses.replace(llm._plan_memory(), prefill_tokens=9)
    with patch.object(llm, "_plan_memory", lambda: small), counted_rows() as rows:
        answers = llm.answer(requests, half)
    texts = [llm._family.tokenize(prompt) for prompt in PROMPTS]
    tails = sum(text.length - len(text.before) for text in texts)
    assert set(rows.values()) == {len(texts[0].before) + answers[0].stats.stage_tokens[0] + tails}
    for request, answer in zip(requests, answers, strict=True):
        assert llm.answer([request], half)[0].token_ids == answer.token_ids


def test_what_is_stored_may_be_cleared_at_any_time(llm):
    make, retention, _ = PRUNERS["hieravid"]
    pruner = make()
    store = PrefixStore(pruner)
    first, second = admitted(llm, [ask(prompt) for prompt in PROMPTS[:2]], pruner, retention)
    store.retain([second])
    results = prefill(llm, pruner, [first], store)
    store.clear()
    assert store.bytes == 0
    store.retain([])
    same_as_alone(llm, make, retention, results + prefill(llm, pruner, [second], store))


def test_nothing_is_stored_for_a_video_that_nobody_else_asks_about(llm):
    pruner = make_pruner(PruningConfig())
    store = PrefixStore(pruner)
    own, other, others_second = admitted(llm, [ask("what"), ask("what", 3), ask("how", 3)], pruner, 0.3)
    store.retain([other])
    prefill(llm, pruner, [own], store)
    assert store.bytes == 0
    store.retain([])
    prefill(llm, pruner, [other, others_second], store)
    assert store.bytes == 0


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"retention": 0.4}, {"is_traced": True}, {"video_key": None}, {"video_key": "other"}],
    ids=lambda changes: next(iter(changes)),
)
def test_sequences_that_differ_before_the_prompt_share_nothing(llm, changes):
    pruner = make_pruner(PruningConfig(method="random"))
    sequences = admitted(llm, [ask("what"), ask("how", **changes)], pruner, 0.3)
    with counted_rows() as rows:
        prefill(llm, pruner, sequences)
    assert rows[0] == sum(sequence.entering_tokens[0] for sequence in sequences)


def test_a_text_before_the_video_belongs_to_the_prefix(llm):
    pruner = make_pruner(PruningConfig(method="none"))
    sequences = admitted(llm, [ask("what"), ask("how")], pruner)
    prompt = sequences[1].prompt
    sequences[1].prompt = dataclasses.replace(prompt, before=[*prompt.before[:-1], 7])
    with counted_rows() as rows:
        prefill(llm, pruner, sequences)
    assert rows[0] == sum(sequence.entering_tokens[0] for sequence in sequences)


def test_nothing_is_shared_where_the_input_is_pruned_by_the_prompt(llm):
    pruner = PromptedPruner()
    sequences = admitted(llm, [ask("what"), ask("how")], pruner)
    with counted_rows() as rows:
        prefill(llm, pruner, sequences)
    assert rows[0] == sum(sequence.entering_tokens[0] for sequence in sequences)
    assert len({tuple(view.prompt.flatten().tolist()) for view in pruner.seen if view.prompt is not None}) == 2


def test_times_of_a_shared_pass_are_shares_of_the_time_spent(llm, monkeypatch):
    pruner = make_pruner(PruningConfig())
    sequences = admitted(llm, [ask(prompt) for prompt in PROMPTS], pruner, 0.3)
    ticks = itertools.count()
    videos = llm.encode([s.request.frames for s in sequences], attention=False)
    monkeypatch.setattr(llm, "encode", lambda *_, **__: videos)
    monkeypatch.setattr("pipeline.engine.stopwatch.time.perf_counter", lambda: next(ticks) / 1000)
    prefill(llm, pruner, sequences)
    spent = sum(sequence.prune_ms + sequence.prefill_ms for sequence in sequences)
    assert spent == pytest.approx(next(ticks) - 1)  # in ticks of 1 ms; the first one starts the watch
    assert all(sequence.prune_ms > 0 and sequence.prefill_ms > 0 for sequence in sequences)
