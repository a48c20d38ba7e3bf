"""One engine for all calls of an actor: their requests run as one stream, and decoding never drains between them."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import ERROR_CODES, RowError
from pipeline.metrics import request_gauge

if TYPE_CHECKING:
    from pipeline.engine import Answer, Failure, ModelInfo, Request
    from pruning import PruningConfig


class Engine(Protocol):
    """What answering needs of a VideoLLM."""

    info: ModelInfo

    def answer(self, requests: Iterator[Request | None], pruning: PruningConfig) -> Iterator[Answer | Failure]:
        """Answers as they finish, numbered by the requests' places; None among these says that none waits now."""


@dataclass(frozen=True)
class Outcome:
    """What became of a request: how often it was tried, and when the engine first took it."""

    result: Answer | RowError
    attempts: int
    begun_at: datetime


@dataclass(eq=False)
class _Asked:
    request: Request
    begun_at: datetime | None = None
    future: Future[Outcome] = field(default_factory=Future)

    def settle(self, result: Answer | RowError, attempts: int) -> None:
        self.future.set_result(Outcome(result, attempts, self.begun_at or datetime.now(UTC)))


class AnswerStream:
    """Calls from any number of threads share an engine, which a thread of ours alone uses.

    That thread lives as long as there is something to do. What the engine refuses costs one request.
    Where the engine itself fails, the requests that it had taken are asked once more, one by one:
    each then fails or succeeds by itself, and no call waits for an answer that cannot come.
    """

    def __init__(self, engine: Engine, pruning: PruningConfig) -> None:
        """Nothing runs before the first call."""
        self._engine = engine
        self._pruning = pruning
        self._tell_load = request_gauge()
        self._lock = threading.Lock()  # of what follows
        self._waiting: deque[_Asked] = deque()
        self._is_running = False

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """What became of each request, in order; returns when all have ended."""
        asked = [_Asked(request) for request in requests]
        with self._lock:
            self._waiting.extend(asked)
            if asked and not self._is_running:
                threading.Thread(target=self._run, name="engine", daemon=True).start()
                self._is_running = True
        return [item.future.result() for item in asked]

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._tell_load(0, 0)
                    self._is_running = False
                    return
                first = self._waiting.popleft()
            self._answer_until_idle(first)

    def _answer_until_idle(self, first: _Asked) -> None:
        """One stream of the engine, as long as requests come before the last has ended."""
        taken = {0: first}  # by their number in the stream; those that have not ended
        failure: RowError
        try:
            for outcome in self._engine.answer(self._requests(taken), self._pruning):
                taken.pop(outcome.number).settle(_result(outcome), attempts=1)
            failure = RowError("generate", "generate_failed", "the engine ended without an answer")
        except BaseException as error:  # whatever it is: this thread must go on, or its callers wait for ever
            failure = _row_error(error)
        if len(taken) == 1:  # nobody else can be the cause
            taken.popitem()[1].settle(failure, attempts=1)
        for item in taken.values():
            item.settle(self._answer_alone(item.request), attempts=2)

    def _requests(self, taken: dict[int, _Asked]) -> Iterator[Request | None]:
        item: _Asked | None = taken[0]
        number = 0
        while item is not None or taken:
            if item is None:
                yield None
            else:
                item.begun_at = datetime.now(UTC)
                taken[number] = item
                number += 1
                yield item.request
            with self._lock:
                self._tell_load(len(self._waiting), len(taken))
                item = self._waiting.popleft() if self._waiting else None

    def _answer_alone(self, request: Request) -> Answer | RowError:
        try:
            [outcome] = self._engine.answer(iter([request]), self._pruning)
            return _result(outcome)
        except BaseException as error:
            return _row_error(error)


def _result(outcome: Answer | Failure) -> Answer | RowError:
    from pipeline.engine import Failure

    if not isinstance(outcome, Failure):
        return outcome
    # The engine's number is a place in the stream, which tells a reader of the row nothing.
    message = re.sub(r"^request \d+: ", "", outcome.message)
    return RowError(ERROR_CODES[outcome.code][0], outcome.code, message)


def _row_error(error: BaseException) -> RowError:
    """A failure of the engine itself."""
    from pipeline.engine.memory import is_out_of_memory

    code = "out_of_memory" if is_out_of_memory(error) else "generate_failed"
    return RowError("generate", code, f"{type(error).__name__}: {error}")
