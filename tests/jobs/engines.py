"""Stand-ins for the model, for what no real model does on demand."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pipeline.benchmark.pipeline.stubs import stub_answer
from pipeline.engine import Failure, ModelError

INFO = SimpleNamespace(
    name="fake", model_hash="0" * 64, dtype="float32", device="cpu", quantization="none", default_frames=4
)


@dataclass
class FakeEngine:
    """Takes what waits, answers it, takes again; fails on what it is told to. Remembers how much it took each time."""

    poison: tuple[str, ...] = ()
    too_long: tuple[str, ...] = ()
    rounds: list[int] = field(default_factory=list)
    requests: list = field(default_factory=list)
    info = INFO

    def answer(self, requests, pruning):
        taken = list(self._waiting(requests))
        place = 0
        while taken:
            self.rounds.append(len(taken))
            for request in taken:
                yield self.answer_one(place, request)
                place += 1
            taken = list(self._waiting(requests))

    def _waiting(self, requests):
        for request in requests:
            if request is None:
                return
            yield request

    def answer_one(self, place, request):
        if request.prompt in self.too_long:
            return Failure(place, "prompt_too_long", f"request {place}: 9 tokens exceed 8 positions")
        if request.prompt in self.poison:
            raise RuntimeError(f"poisoned by token=abcdefgh1234\nsecond line: {request.prompt}")
        self.requests.append(request)
        return stub_answer(place, request.prompt)


class DyingEngine(FakeEngine):
    """Its process is killed when it is asked `die`, as the kernel does where memory runs out."""

    def answer_one(self, place, request):
        time.sleep(0.1)  # others are in work beside it
        if request.prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer_one(place, request)


@dataclass
class OnceDyingEngine(FakeEngine):
    """Takes its process down at its third answer, but not where it or its like has done so before."""

    mark: str = ""

    def answer_one(self, place, request):
        if len(self.requests) == 2 and not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(1)
        return super().answer_one(place, request)


class SlowEngine(FakeEngine):
    """Takes a moment for each request."""

    def answer_one(self, place, request):
        time.sleep(0.2)
        return super().answer_one(place, request)


def unusable_engine():
    raise ModelError("/models/x: weight lm_head has shape [1], the model wants [2]")


def dying_engine():
    os.kill(os.getpid(), signal.SIGKILL)


def broken_engine():
    raise RuntimeError("no space left on device")
