"""Stand-ins for the model, for what no real model does on demand."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pipeline.engine import Answer, AnswerStats, ModelError, PromptTooLongError

INFO = SimpleNamespace(name="fake", model_hash="0" * 64, dtype="float32", device="cpu", default_frames=4)


def answer_to(request, words: int = 3) -> Answer:
    stats = AnswerStats(
        video_tokens=100,
        prompt_tokens=10,
        output_tokens=words,
        segments=None,
        stage_layers=[0],
        stage_tokens=[100],
        retention_requested=1.0,
        retention_achieved=1.0,
        flops_ratio=1.0,
        kv_ratio=1.0,
        vision_ms=1.0,
        prune_ms=0.0,
        prefill_ms=1.0,
        generate_ms=1.0,
    )
    return Answer(f"answer to {request.prompt}", [1] * words, "stop", stats)


@dataclass
class FakeEngine:
    """Answers everything but what it is told to fail on; remembers the size of each call."""

    poison: tuple[str, ...] = ()
    too_long: tuple[str, ...] = ()
    most_at_once: int = 1000
    calls: list[int] = field(default_factory=list)
    requests: list = field(default_factory=list)
    info = INFO

    def answer(self, requests, pruning):
        self.calls.append(len(requests))
        if len(requests) > self.most_at_once:
            raise MemoryError("not enough")
        for number, request in enumerate(requests):
            if request.prompt in self.too_long:
                raise PromptTooLongError(f"request {number}: 9 tokens exceed 8 positions")
            if request.prompt in self.poison:
                raise RuntimeError(f"poisoned by token=abcdefgh1234\nsecond line: {request.prompt}")
        self.requests += requests
        return [answer_to(request) for request in requests]


class DyingEngine(FakeEngine):
    """Takes its whole process down when it is asked `prompt`."""

    def answer(self, requests, pruning):
        if any(request.prompt == "die" for request in requests):
            os._exit(1)
        return super().answer(requests, pruning)


@dataclass
class OnceDyingEngine(FakeEngine):
    """Takes its process down in its second call, but not where it or its like has done so before."""

    mark: str = ""

    def answer(self, requests, pruning):
        if len(self.calls) == 1 and not Path(self.mark).exists():
            Path(self.mark).touch()
            os._exit(1)
        return super().answer(requests, pruning)


class SlowEngine(FakeEngine):
    """Takes a moment for each request."""

    def answer(self, requests, pruning):
        time.sleep(0.2 * len(requests))
        return super().answer(requests, pruning)


def unusable_engine():
    raise ModelError("/models/x: weight lm_head has shape [1], the model wants [2]")


def broken_engine():
    raise RuntimeError("no space left on device")
