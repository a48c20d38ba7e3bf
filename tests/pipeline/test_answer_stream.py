import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import torch

from pipeline.answer_stream import AnswerStream
from pipeline.benchmark.pipeline.stubs import stub_answer
from pipeline.engine import Failure
from pipeline.errors import RowError
from pruning import PruningConfig
from tests.jobs.engines import FakeEngine

PATIENCE_S = 20.0


def asked(*prompts):
    return [SimpleNamespace(prompt=prompt) for prompt in prompts]


def stream_of(engine):
    return AnswerStream(engine, PruningConfig())


def told(outcomes):
    results = [outcome.result for outcome in outcomes]
    return [result.code if isinstance(result, RowError) else result.text for result in results]


class Steps:
    """An engine that is let on step by step: it answers what is named, once that has reached it."""

    info = None

    def __init__(self):
        self.finish = threading.Semaphore(0)
        self.names = []
        self.streams = 0
        self.reached = threading.Event()

    def answer(self, requests, pruning):
        self.streams += 1
        running, number = {}, 0
        while True:
            try:
                request = next(requests)
            except StopIteration:
                return
            if request is not None:
                running[request.prompt] = number, request
                number += 1
                self.reached.set()
            elif self.finish.acquire(timeout=0.01):
                number_of, request = running.pop(self.names.pop(0))
                yield stub_answer(number_of, request.prompt)

    def let(self, name):
        self.names.append(name)
        self.finish.release()


def test_answers_come_in_the_order_of_the_requests():
    class Backwards(FakeEngine):
        def answer(self, requests, pruning):
            yield from reversed(list(super().answer(requests, pruning)))

        def _waiting(self, requests):
            return [request for _, request in zip(range(3), requests, strict=False) if request is not None]

    outcomes = stream_of(Backwards()).answer(asked("a", "b", "c"))
    assert told(outcomes) == ["answer to a", "answer to b", "answer to c"]
    assert {outcome.attempts for outcome in outcomes} == {1}


def test_nothing_asked_starts_nothing():
    engine = FakeEngine()
    assert stream_of(engine).answer([]) == []
    assert engine.rounds == []


def test_a_call_joins_the_stream_that_runs_and_may_end_before_it():
    engine = Steps()
    stream = stream_of(engine)
    with ThreadPoolExecutor(2) as calls:
        first = calls.submit(stream.answer, asked("long"))
        assert engine.reached.wait(PATIENCE_S)
        second = calls.submit(stream.answer, asked("short"))
        engine.reached.clear()
        assert engine.reached.wait(PATIENCE_S)
        engine.let("short")
        assert told(second.result(PATIENCE_S)) == ["answer to short"]
        assert not first.done()
        engine.let("long")
        assert told(first.result(PATIENCE_S)) == ["answer to long"]
    assert engine.streams == 1


def test_a_stream_ends_when_nothing_is_left_and_the_next_call_begins_another():
    engine = FakeEngine()
    stream = stream_of(engine)
    for prompt in ("a", "b"):
        assert told(stream.answer(asked(prompt))) == [f"answer to {prompt}"]
    deadline = time.monotonic() + PATIENCE_S
    while any(thread.name == "engine" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_engine_serves_one_thread_at_a_time_whoever_calls():
    class Watched(FakeEngine):
        inside = 0

        def answer(self, requests, pruning):
            self.inside += 1
            assert self.inside == 1
            yield from super().answer(requests, pruning)
            self.inside -= 1

    stream = stream_of(Watched())
    with ThreadPoolExecutor(8) as calls:
        prompts = [[f"{call}-{n}" for n in range(call % 4)] for call in range(60)]
        for wanted, outcomes in zip(prompts, calls.map(lambda p: stream.answer(asked(*p)), prompts), strict=True):
            assert told(outcomes) == [f"answer to {prompt}" for prompt in wanted]
            assert {outcome.attempts for outcome in outcomes} <= {1}


def test_what_the_engine_refuses_costs_one_request_and_is_told_without_its_place():
    outcomes = stream_of(FakeEngine(too_long=("b",))).answer(asked("a", "b", "c"))
    assert told(outcomes) == ["answer to a", "prompt_too_long", "answer to c"]
    assert outcomes[1].result.message == "9 tokens exceed 8 positions"
    assert {outcome.attempts for outcome in outcomes} == {1}


@pytest.mark.parametrize(
    ("code", "stage"), [("encode_failed", "encode"), ("invalid_request", "generate"), ("out_of_memory", "generate")]
)
def test_a_refusal_keeps_its_code(code, stage):
    class Refusing(FakeEngine):
        def answer_one(self, place, request):
            return Failure(place, code, f"request {place}: no")

    [outcome] = stream_of(Refusing()).answer(asked("a"))
    assert (outcome.result.stage, outcome.result.code, outcome.result.message) == (stage, code, "no")


def test_where_the_engine_fails_what_it_had_taken_is_asked_once_more_one_by_one():
    outcomes = stream_of(FakeEngine(poison=("b",))).answer(asked("a", "b", "c"))
    assert told(outcomes) == ["answer to a", "generate_failed", "answer to c"]
    assert [outcome.attempts for outcome in outcomes] == [1, 2, 2]


def test_a_request_that_was_alone_is_not_asked_again():
    [outcome] = stream_of(FakeEngine(poison=("a",))).answer(asked("a"))
    assert (outcome.result.code, outcome.attempts) == ("generate_failed", 1)


def test_an_engine_that_always_fails_ends_every_waiting_call():
    class Broken(FakeEngine):
        def answer(self, requests, pruning):
            next(requests)
            raise torch.OutOfMemoryError("not enough")
            yield

    stream = stream_of(Broken())
    with ThreadPoolExecutor(3) as calls:
        waiting = [calls.submit(stream.answer, asked("a", "b")) for _ in range(3)]
        for call in waiting:
            assert told(call.result(PATIENCE_S)) == ["out_of_memory"] * 2


@pytest.mark.parametrize("way", ["never begins", "ends early", "leaves", "numbers wrongly"])
def test_no_call_waits_for_an_engine_that_gave_up(way):
    class Odd(FakeEngine):
        def answer(self, requests, pruning):
            if way == "never begins":
                return
            request = next(requests)
            if way == "leaves":
                raise SystemExit(1)
            if way == "numbers wrongly":
                yield stub_answer(7, request.prompt)

    stream = stream_of(Odd())
    with ThreadPoolExecutor(1) as calls:
        for _ in range(2):  # a call after that is answered as well
            assert told(calls.submit(stream.answer, asked("a", "b")).result(PATIENCE_S)) == ["generate_failed"] * 2


def test_a_request_has_begun_when_the_engine_takes_it():
    class Late(FakeEngine):
        def _waiting(self, requests):
            return [request for request in [next(requests, None)] if request is not None]

        def answer_one(self, place, request):
            self.ended = datetime.now(UTC)
            return super().answer_one(place, request)

    engine = Late()
    first, second = stream_of(engine).answer(asked("a", "b"))
    assert first.begun_at <= second.begun_at <= engine.ended
