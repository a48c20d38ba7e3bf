"""A stream of requests is answered while it comes in, a little ahead at most, and a bad one costs only itself."""

import dataclasses
import queue
import threading
import time

import numpy as np
import pytest
import torch

from pipeline.engine import Answer, EncodedVideo, Failure, Request, scheduler, vision, window
from pruning import PruningConfig, UnreachableRetentionError
from tests.engine.pruners import EvenPruner
from tests.engine.videos import make_video

HALF = PruningConfig(method="hieravid", retention=0.5)


def ask(number=0, frames=3, **options):
    options = {"max_new_tokens": 6, "seed": number, **options}
    return Request(make_video(frames, seed=number), f"question {number}", **options)


def by_number(outcomes):
    return sorted(outcomes, key=lambda outcome: outcome.number)


def test_an_iterator_gives_what_a_list_gives(llm):
    requests = [ask(n, frames=1 + n % 4) for n in range(7)]
    listed = llm.answer(requests, HALF)
    streamed = by_number(llm.answer(iter(requests), HALF))
    assert [answer.number for answer in streamed] == list(range(7))
    for one, other in zip(listed, streamed, strict=True):
        assert (one.text, one.token_ids, one.finish_reason) == (other.text, other.token_ids, other.finish_reason)
    assert list(llm.answer(iter([]), HALF)) == []
    assert list(llm.answer(iter([None, None]), HALF)) == []


def test_answers_come_as_they_finish(llm):
    requests = [ask(0, max_new_tokens=9), ask(1, max_new_tokens=3), ask(2, max_new_tokens=6)]
    assert [answer.number for answer in llm.answer(iter(requests), HALF)] == [1, 2, 0]


def test_who_joins_late_says_the_same_and_makes_nobody_wait(llm):
    alone = [llm.answer([request], HALF)[0] for request in (ask(0, max_new_tokens=20), ask(1))]
    events = []

    def source():
        yield ask(0, max_new_tokens=20)
        for _ in range(5):
            events.append("nothing")
            yield None
        events.append("second")
        yield ask(1)

    outcomes = []
    for answer in llm.answer(source(), HALF):
        events.append(answer.number)
        outcomes.append(answer)
    assert events == ["nothing"] * 5 + ["second", 1, 0]
    assert [answer.token_ids for answer in by_number(outcomes)] == [answer.token_ids for answer in alone]


def test_an_engine_thread_is_fed_while_it_decodes(llm):
    waiting: queue.Queue[Request | None] = queue.Queue()
    answered: queue.Queue[Answer | Failure] = queue.Queue()

    def incoming():
        while True:
            try:
                request = waiting.get_nowait()
            except queue.Empty:
                yield None
                continue
            if request is None:
                return
            yield request

    def work():
        for outcome in llm.answer(incoming(), HALF):
            answered.put(outcome)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        waiting.put(ask(0))
        first = answered.get(timeout=60)  # it is answered although the stream is still open
        for n in (1, 2, 3):
            waiting.put(ask(n))
            time.sleep(0.005)
        rest = [answered.get(timeout=60) for _ in range(3)]
    finally:
        waiting.put(None)
        thread.join(timeout=60)
    assert not thread.is_alive()
    expected = llm.answer([ask(n) for n in range(4)], HALF)
    assert [a.token_ids for a in by_number([first, *rest])] == [a.token_ids for a in expected]


@pytest.mark.parametrize("bound", ["requests", "bytes", "tokens"])
def test_only_a_few_requests_are_taken_ahead(llm, monkeypatch, bound):
    request = ask(0, max_new_tokens=3)
    monkeypatch.setattr(scheduler, "_MAX_ROWS", 2)
    if bound == "requests":
        monkeypatch.setattr(window, "_MAX_WAITING", 3)
    elif bound == "bytes":
        monkeypatch.setattr(window, "_MAX_BYTES", 3 * request.frames.nbytes)
    else:
        [answer] = llm.answer([request], HALF)
        entering = answer.stats.stage_tokens[0] + answer.stats.prompt_tokens
        # two packs' worth, in whole requests
        little = dataclasses.replace(llm._plan_memory(), prefill_tokens=entering * 3 // 2)
        monkeypatch.setattr(llm, "_plan_memory", lambda: little)
    pulled = answered = most = 0

    def source():
        nonlocal pulled, most
        for n in range(12):
            pulled += 1
            most = max(most, pulled - answered)
            yield ask(n, max_new_tokens=3)

    for _ in llm.answer(source(), HALF):
        answered += 1
    assert pulled == answered == 12
    assert most <= 3 + 2  # in line, and running


def test_frames_are_let_go_once_they_are_prefilled(llm, monkeypatch):
    held = []
    step = llm._decode_step

    def looked(*rest):
        held.append([s.request.frames.nbytes for slab in engines[0]._slabs for s in slab.sequences])
        return step(*rest)

    engines = []
    make = scheduler.Scheduler.__init__
    monkeypatch.setattr(scheduler.Scheduler, "__init__", lambda self, *rest: engines.append(self) or make(self, *rest))
    monkeypatch.setattr(llm, "_decode_step", looked)
    list(llm.answer(iter([ask(0), ask(1)]), HALF))
    assert held
    assert not any(sum(sizes) for sizes in held)


def test_an_abandoned_stream_asks_for_nothing_more(llm):
    pulled = []

    def source():
        for n in range(100):
            pulled.append(n)
            yield ask(n, max_new_tokens=2)
            yield None

    answers = llm.answer(source(), HALF)
    next(answers)
    answers.close()
    assert len(pulled) < 10


class Unreachable(EvenPruner):
    """Cannot do with three frames."""

    def plan(self, grid, num_layers, retention):
        if grid.frames == 3:
            raise UnreachableRetentionError("even", retention, 0.4)
        return super().plan(grid, num_layers, retention)


@pytest.mark.parametrize(
    ("bad", "pruning", "code", "message"),
    [
        (ask(1, max_new_tokens=0), HALF, "invalid_request", "max_new_tokens must be at least 1, not 0"),
        (ask(1, max_new_tokens=2.5), HALF, "invalid_request", "max_new_tokens must be a whole number, not 2.5"),
        (Request(np.zeros((2, 8, 8)), "what"), HALF, "invalid_request", "frames must be uint8, not float64"),
        (ask(1, max_new_tokens=5000), HALF, "prompt_too_long", "exceed the 4096 positions"),
        (ask(1, retention=0.1), Unreachable(), "retention_unreachable", "even cannot reach a retention of 0.1"),
        ("no request", HALF, "generate_failed", "AttributeError: 'str' object has no attribute 'frames'"),
        (
            ask(1, frames=2, video_key="clip"),
            HALF,
            "invalid_request",
            "frames of another shape in request 0",
        ),
    ],
)
def test_a_request_that_is_refused_harms_no_other(llm, bad, pruning, code, message):
    good = [ask(0, frames=1, video_key="clip"), ask(2, frames=4)]
    expected = llm.answer(good, pruning)
    first, failure, last = by_number(llm.answer(iter([good[0], bad, good[1]]), pruning))
    assert (failure.number, failure.code) == (1, code)
    assert message in failure.message
    assert "\n" not in failure.message
    assert not failure.message.startswith("request 1")
    assert [first.token_ids, last.token_ids] == [answer.token_ids for answer in expected]


def test_a_request_that_memory_does_not_hold_harms_no_other(llm, monkeypatch):
    good = [ask(0), ask(1), ask(3)]
    expected = llm.answer(good, HALF)
    prefill = scheduler.prefill

    def small(family, pruner, pack, *rest):
        if sum(s.grid.frames for s in pack) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return prefill(family, pruner, pack, *rest)

    monkeypatch.setattr(scheduler, "prefill", small)
    requests = [*good[:2], ask(2, frames=6), good[2]]
    outcomes = by_number(llm.answer(iter(requests), HALF))
    failure = outcomes.pop(2)
    assert (failure.number, failure.code) == (2, "out_of_memory")
    assert "out of memory with 96 video tokens and no other request at work" in failure.message
    assert [answer.token_ids for answer in outcomes] == [answer.token_ids for answer in expected]


def test_what_can_never_fit_is_told_before_any_work(llm, monkeypatch):
    little = dataclasses.replace(llm._plan_memory(), free=1)
    monkeypatch.setattr(llm, "_plan_memory", lambda: little)
    monkeypatch.setattr("pipeline.engine.encoding.encode_videos", None)
    [failure] = llm.answer(iter([ask(0)]), HALF)
    assert failure.code == "out_of_memory"
    with pytest.raises(torch.OutOfMemoryError, match=r"^request 0: "):
        llm.answer([ask(0)], HALF)


def test_questions_about_one_video_share_its_encoding_while_they_wait(llm, monkeypatch):
    encoded = []
    encode = vision.encode_videos
    monkeypatch.setattr(
        "pipeline.engine.encoding.encode_videos",
        lambda family, videos, *options: encoded.extend(videos) or encode(family, videos, *options),
    )
    monkeypatch.setattr(scheduler, "_MAX_ROWS", 2)
    frames = make_video(3)
    requests = [Request(frames, f"question {n}", max_new_tokens=3, video_key="clip") for n in range(5)]
    answers = by_number(llm.answer(iter(requests), HALF))
    assert len(encoded) == 1
    assert len({answer.stats.vision_ms for answer in answers}) == 1
    assert [a.token_ids for a in answers] == [a.token_ids for a in llm.answer(requests, HALF)]


def test_videos_that_come_encoded_are_streamed_too(llm):
    encoded = llm.encode([make_video(3), make_video(2, seed=1)])
    assert all(isinstance(video, EncodedVideo) for video in encoded)
    requests = [Request(video, "what", max_new_tokens=4) for video in encoded]
    streamed = by_number(llm.answer(iter(requests), HALF))
    assert [a.token_ids for a in streamed] == [a.token_ids for a in llm.answer(requests, HALF)]


def test_a_video_whose_tokens_are_not_numbers_fails_by_itself(llm):
    [encoded] = llm.encode([make_video(3)])
    spoilt = dataclasses.replace(encoded, tokens=torch.full_like(encoded.tokens, torch.nan))
    requests = [ask(0), Request(spoilt, "what happens", max_new_tokens=6, seed=1), ask(2)]
    first, failure, last = by_number(llm.answer(iter(requests), PruningConfig(method="none")))
    assert isinstance(first, Answer)
    assert isinstance(last, Answer)
    assert isinstance(failure, Failure)
    assert (failure.code, "not numbers" in failure.message) == ("generate_failed", True)
