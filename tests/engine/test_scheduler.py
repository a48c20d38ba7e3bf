"""Sequences run, leave and join as memory and company allow, and none of that changes an answer."""

import dataclasses
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import EncodeError, Failure, Request, decode, scheduler
from pipeline.engine.decode import decode_step
from pipeline.engine.memory import MemoryPlan
from pruning import PruningConfig
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video

HALF = PruningConfig(method="hieravid", retention=0.5)
PROMPTS = ["what happens", "how many?", "", "which came first, red or blue"]


def ask(number, frames=None, **options):
    frames = 1 + number % 4 if frames is None else frames
    options = {"max_new_tokens": 4 + number % 5, "seed": number, **options}
    return Request(make_video(frames, seed=number), PROMPTS[number % 4], **options)


@pytest.fixture
def prefills(monkeypatch):
    """The packs of each prefill, by their requests' numbers, and weak references to their caches."""
    seen = []
    prefill = scheduler.prefill

    def noted(family, pruner, pack, videos, prefixes):
        cache, logits = prefill(family, pruner, pack, videos, prefixes)
        seen.append(([s.number for s in pack], weakref.ref(cache)))
        return cache, logits

    monkeypatch.setattr(scheduler, "prefill", noted)
    return seen


def limit(llm, monkeypatch, **budgets):
    plan = dataclasses.replace(MemoryPlan.of(llm._family.decoder), **budgets)
    monkeypatch.setattr(llm, "_plan_memory", lambda: plan)


def ids(answers):
    return [answer.token_ids for answer in answers]


def test_the_next_joins_when_one_has_finished(llm, monkeypatch, prefills):
    requests = [Request(make_video(2, seed=n), "what", max_new_tokens=2 + 3 * n) for n in range(5)]
    whole = llm.answer(requests, HALF)
    prefills.clear()
    monkeypatch.setattr(scheduler, "_MAX_ROWS", 2)
    steps = []

    def counted(caches, tokens, positions):
        steps.append(sum(cache.rows for cache in caches))
        return decode_step(llm._family.decoder, caches, tokens, positions)

    monkeypatch.setattr(llm, "_decode_step", counted)
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert [pack for pack, _ in prefills] == [[0, 1], [2], [3], [4]]
    # the first token of an answer comes from its prefill
    assert sum(steps) == sum(request.max_new_tokens - 1 for request in requests)
    assert steps[0] == max(steps) == 2


def test_caches_go_when_their_last_sequence_has_finished(llm, monkeypatch, prefills):
    monkeypatch.setattr(scheduler, "_MAX_ROWS", 1)
    alive = []

    def counted(*rest):
        alive.append(sum(cache() is not None for _, cache in prefills))
        return decode_step(llm._family.decoder, *rest)

    monkeypatch.setattr(llm, "_decode_step", counted)
    llm.answer([ask(n) for n in range(3)], HALF)
    assert len(prefills) == 3
    assert set(alive) == {1}
    gc.collect()
    assert [cache() for _, cache in prefills] == [None] * 3


def test_the_cache_budget_bounds_who_runs_together(llm, monkeypatch, prefills):
    requests = [Request(make_video(3, seed=n), "what", max_new_tokens=5) for n in range(6)]
    sizes = []

    def weighed(caches, *rest):
        sizes.append(sum(cache.bytes for cache in caches))
        return decode_step(llm._family.decoder, caches, *rest)

    monkeypatch.setattr(llm, "_decode_step", weighed)
    whole = llm.answer(requests, HALF)
    one = sizes[0] / 6
    assert [len(pack) for pack, _ in prefills] == [6]
    limit(llm, monkeypatch, kv_bytes=int(2.5 * one))
    del sizes[:], prefills[:]
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert [len(pack) for pack, _ in prefills] == [2, 2, 2]
    assert max(sizes) == 2 * one


def test_a_request_larger_than_every_budget_is_tried_by_itself(llm, monkeypatch, prefills):
    requests = [ask(n) for n in range(3)]
    whole = llm.answer(requests, HALF)
    prefills.clear()
    limit(llm, monkeypatch, kv_bytes=1, prefill_tokens=1)
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert sorted(len(pack) for pack, _ in prefills) == [1, 1, 1]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=6),
    rows=st.integers(1, 6),
    tokens=st.integers(1, 300),
    pauses=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    method=st.sampled_from(["hieravid", "uniform", "none"]),
)
@settings(deadline=None, max_examples=12, derandomize=True)  # no ties: test_consistency counts those
def test_alone_together_and_joining_late_say_the_same(llm, sizes, rows, tokens, pauses, method):
    requests = [
        Request(make_video(frames, seed=frames), PROMPTS[prompt], max_new_tokens=new, video_key=f"v{frames}")
        for frames, prompt, new in sizes
    ]
    pruning = PruningConfig(method=method, retention=0.4)
    alone = [llm.answer([request], pruning)[0] for request in requests]
    together = llm.answer(requests, pruning)

    def late():
        for request, pause in zip(requests, pauses, strict=False):
            yield from [None] * pause
            yield request

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "_MAX_ROWS", rows)
        limit(llm, patch, prefill_tokens=tokens)
        joined = sorted(llm.answer(late(), pruning), key=lambda answer: answer.number)
    assert ids(alone) == ids(together) == ids(joined)
    for one, other in zip(together, joined, strict=True):
        assert one.stats.stage_tokens == other.stats.stage_tokens


def test_out_of_memory_halves_the_pack(llm, monkeypatch, prefills):
    requests = [ask(n) for n in range(7)]
    whole = llm.answer(requests, HALF)
    prefills.clear()
    fail_prefill_if(monkeypatch, lambda pack: len(pack) > 2, torch.OutOfMemoryError("CUDA out of memory"))
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert sorted(n for pack, _ in prefills for n in pack) == list(range(7))
    assert max(len(pack) for pack, _ in prefills) == 2


def fail_prefill_if(monkeypatch, is_too_much, error):
    prefill = scheduler.prefill

    def failing(family, pruner, pack, *rest):
        if is_too_much(pack):
            raise error
        return prefill(family, pruner, pack, *rest)

    monkeypatch.setattr(scheduler, "prefill", failing)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError("full")])
def test_a_list_says_which_request_does_not_fit(llm, monkeypatch, error):
    fail_prefill_if(monkeypatch, lambda pack: any(s.number == 3 for s in pack), error)
    with pytest.raises(torch.OutOfMemoryError, match=r"^request 3: out of memory with 64 video tokens .*full"):
        llm.answer([ask(n) for n in range(5)], HALF)


def test_what_fits_only_by_itself_waits_for_the_others_to_finish(llm, monkeypatch, prefills):
    requests = [ask(n, max_new_tokens=6 + n) for n in range(4)]
    whole = llm.answer(requests, HALF)
    prefills.clear()
    crowded = []

    def is_crowded(pack):
        now = len(pack) > 1 or any(cache() is not None for _, cache in prefills)
        crowded.append(now)
        return now

    fail_prefill_if(monkeypatch, is_crowded, torch.OutOfMemoryError("full"))
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert [len(pack) for pack, _ in prefills] == [1] * 4
    assert len(crowded) <= 12


def test_a_failed_prefill_leaves_nothing_behind(llm, monkeypatch):
    requests = [ask(n, is_traced=True) for n in range(4)]
    whole = llm.answer(requests, HALF)
    run = scheduler.Prefill.run

    def broken(self, videos):
        logits = run(self, videos)
        if len(videos) > 1:
            raise torch.OutOfMemoryError("after all of the work")
        return logits

    monkeypatch.setattr(scheduler.Prefill, "run", broken)
    for before, after in zip(whole, llm.answer(requests, HALF), strict=True):
        assert before.token_ids == after.token_ids
        assert before.stats.stage_tokens == after.stats.stage_tokens
        assert before.stats.segments == after.stats.segments
        assert (before.trace.alive_until == after.trace.alive_until).all()
        assert (before.trace.merged_into == after.trace.merged_into).all()


def failing_step(llm, is_too_much, error):
    def step(caches, tokens, positions):
        if is_too_much(caches, positions):
            for cache in caches:  # as late as it can be
                cache.advance()
                cache.retreat()
            raise error
        return decode_step(llm._family.decoder, caches, tokens, positions)

    return step


def test_a_decode_step_that_fails_is_done_in_halves(llm, monkeypatch):
    requests = [ask(n, max_new_tokens=8) for n in range(5)]
    whole = llm.answer(requests, HALF)
    tried = []

    def is_too_much(caches, positions):
        tried.append(len(positions))
        return len(positions) > 2

    monkeypatch.setattr(llm, "_decode_step", failing_step(llm, is_too_much, torch.OutOfMemoryError("full")))
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert [rows for rows in tried if rows > 2] == [5, 3]  # what did not fit is not tried again


def test_the_sequence_that_breaks_a_decode_step_fails_alone(llm, monkeypatch):
    requests = [Request(make_video(1 + n, seed=n), "what", max_new_tokens=8) for n in range(5)]
    whole = llm.answer(requests, HALF)
    stats = whole[3].stats
    bad = stats.video_tokens + stats.prompt_tokens + 2  # the place of its third token
    step = failing_step(llm, lambda caches, positions: bad in positions, RuntimeError("bad row"))
    monkeypatch.setattr(llm, "_decode_step", step)
    outcomes = sorted(llm.answer(iter(requests), HALF), key=lambda outcome: outcome.number)
    assert outcomes[3] == Failure(3, "generate_failed", "RuntimeError: bad row")
    assert ids(outcomes[:3] + outcomes[4:]) == ids(whole[:3] + whole[4:])
    with pytest.raises(RuntimeError, match="bad row"):
        llm.answer(requests, HALF)


def test_a_choice_of_tokens_that_fails_is_made_again_in_halves(llm, monkeypatch):
    requests = [ask(n, temperature=float(n % 2), forced_token_ids=(5, 6) if n == 2 else None) for n in range(5)]
    whole = llm.answer(requests, HALF)
    choose = decode.choose_tokens

    def short_of_memory(logits, samplers):
        for sampler in samplers:
            sampler.draw()  # as far as it gets
        if len(samplers) > 2:
            raise torch.OutOfMemoryError("full")
        return choose(logits, samplers)

    monkeypatch.setattr(decode, "choose_tokens", short_of_memory)
    again = llm.answer(requests, HALF)
    assert ids(again) == ids(whole)
    assert len(again[2].logprobs) == 2

    def failing(logits, samplers):
        if any(sampler.temperature for sampler in samplers):
            raise RuntimeError("no dice")
        return choose(logits, samplers)

    monkeypatch.setattr(decode, "choose_tokens", failing)
    outcomes = sorted(llm.answer(iter(requests), HALF), key=lambda outcome: outcome.number)
    assert [outcomes[n] for n in (1, 3)] == [Failure(n, "generate_failed", "RuntimeError: no dice") for n in (1, 3)]
    assert ids(outcomes[::2]) == ids(whole[::2])


class FakeGraph:
    """As a DecodeGraph: steps over the rows as they were placed, into the same logits, and the slabs do not know."""

    placed = 0

    def __init__(self, step, layers, device):
        self.layers = step
        self.result = None

    def place(self, slabs, positions):
        type(self).placed += 1
        self.slabs, self.positions = slabs, list(positions)
        assert [cache.rows for cache in slabs] == [len(cache.lengths(0)) for cache in slabs]

    def step(self, tokens):
        for cache in self.slabs:
            cache.advance()
        logits = self.layers(torch.tensor(tokens), torch.tensor(self.positions), decode.slab_attention(self.slabs))
        for cache in self.slabs:
            cache.retreat()
        self.positions = [position + 1 for position in self.positions]
        if self.result is None:
            self.result = logits.new_empty(8, logits.shape[1])
        self.result[: len(logits)] = logits
        return self.result[: len(logits)]


def test_a_graph_is_told_where_rows_lie_only_when_they_moved(llm, monkeypatch):
    requests = [ask(n, max_new_tokens=n + 4) for n in range(4)]
    whole = llm.answer(requests, HALF)
    monkeypatch.setattr(decode, "DecodeGraph", FakeGraph)
    monkeypatch.setattr(llm, "_decode_step", decode.GraphedStep(llm._family.decoder))
    monkeypatch.setattr(FakeGraph, "placed", 0)
    assert ids(llm.answer(requests, HALF)) == ids(whole)
    assert FakeGraph.placed == 4  # when all came, and when all but the last left
    monkeypatch.setattr(scheduler, "_MAX_ROWS", 2)
    assert ids(llm.answer(requests, HALF)) == ids(whole)


def test_two_streams_may_take_turns_on_one_graph(llm, monkeypatch):
    requests = [ask(n, max_new_tokens=n + 4) for n in range(4)]
    others = [ask(n + 4, max_new_tokens=9) for n in range(3)]
    whole, rest = llm.answer(requests, HALF), llm.answer(others, HALF)
    monkeypatch.setattr(decode, "DecodeGraph", FakeGraph)
    monkeypatch.setattr(llm, "_decode_step", decode.GraphedStep(llm._family.decoder))
    outcomes = []
    for outcome in llm.answer(iter(requests), HALF):
        outcomes.append(outcome)
        assert ids(llm.answer(others, HALF)) == ids(rest)
    assert ids(sorted(outcomes, key=lambda outcome: outcome.number)) == ids(whole)


def test_a_step_that_fails_inside_leaves_the_caches_as_they_were(llm, monkeypatch):
    requests = [ask(n, max_new_tokens=6) for n in range(3)]
    whole = llm.answer(requests, HALF)
    decoder = llm._family.decoder
    add_mlp, calls = decoder.add_mlp, []

    def shaky(layer, hidden):
        calls.append(layer)
        if len(hidden) == 3 and layer == 5 and len(calls) % 2:
            raise RuntimeError("now and then")
        return add_mlp(layer, hidden)

    monkeypatch.setattr(decoder, "add_mlp", shaky)
    assert ids(llm.answer(requests, HALF)) == ids(whole)


def test_a_video_that_cannot_be_encoded_costs_its_own_answers_only(llm, monkeypatch):
    videos = [make_video(frames) for frames in (2, 3, 4)]
    requests = [Request(videos[n // 2], PROMPTS[n % 4], max_new_tokens=5, video_key=f"v{n // 2}") for n in range(6)]
    whole = llm.answer(requests, HALF)
    preprocess = llm._family.preprocess

    def failing(frames):
        if len(frames) == 3:
            raise RuntimeError("bad frames")
        return preprocess(frames)

    monkeypatch.setattr(llm._family, "preprocess", failing)
    outcomes = sorted(llm.answer(iter(requests), HALF), key=lambda outcome: outcome.number)
    assert outcomes[2:4] == [Failure(n, "encode_failed", "bad frames") for n in (2, 3)]
    assert ids(outcomes[:2] + outcomes[4:]) == ids(whole[:2] + whole[4:])
    with pytest.raises(EncodeError, match="bad frames"):
        llm.answer(requests, HALF)


def test_a_pruner_that_fails_on_one_video_costs_one_answer(llm):
    class Choosy(EvenPruner):
        def decide(self, stage, video):
            if stage == 1 and video.seed == 2:
                raise ZeroDivisionError("no such video")
            return super().decide(stage, video)

    requests = [ask(n, frames=3) for n in range(5)]
    whole = llm.answer(requests, EvenPruner())
    outcomes = sorted(llm.answer(iter(requests), Choosy()), key=lambda outcome: outcome.number)
    assert outcomes[2] == Failure(2, "generate_failed", "ZeroDivisionError: no such video")
    assert ids(outcomes[:2] + outcomes[3:]) == ids(whole[:2] + whole[3:])


def test_the_callers_iterator_runs_outside_of_inference_mode(llm):
    modes = []

    def source():
        modes.append(torch.is_inference_mode_enabled())
        yield ask(0)
        modes.append(torch.is_inference_mode_enabled())

    for _ in llm.answer(source(), HALF):
        modes.append(torch.is_inference_mode_enabled())
    assert modes == [False] * 3


def test_peak_memory_and_the_numbers_of_answers_are_told(llm):
    answers = llm.answer([ask(n) for n in range(3)], HALF)
    assert [answer.number for answer in answers] == [0, 1, 2]
    weights = sum(weight.nbytes for weight in llm._family._model.parameters()) / 2**20
    assert all(answer.stats.peak_memory_mb > weights for answer in answers)
