"""Stages that sleep instead of working, in the places of the real ones: their rates are known."""

from __future__ import annotations

import heapq
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import stages

if TYPE_CHECKING:
    from pipeline.engine import Answer, Request
    from pruning import PruningConfig

_GOLDEN = 0.6180339887498949  # its multiples fill the unit interval evenly, in any stretch of them
_POLL_S = 0.005
_INFO = SimpleNamespace(
    name="stub", model_hash="0" * 64, dtype="float32", device="cpu", quantization="none", default_frames=1
)


def seconds_of(name: str, mean_s: float) -> float:
    """How long the work with this name takes: between half and one and a half of the mean, by the number it ends with.

    Equal times would let all actors finish at once, which no real stage does.
    """
    number = int(re.findall(r"\d+", Path(name).stem)[-1])
    return mean_s * (0.5 + number * _GOLDEN % 1.0)


def sleeping_decoder(seconds: float, journal: str | None = None) -> type[stages.Decoder]:
    """A Decoder that sleeps `seconds` for a video, one at a time, and finds one small grey frame in it.

    With a `journal` it adds the uri of each video to that file, one a line.
    """

    class Decoder(stages.Decoder):
        """Reads no file."""

        def __init__(self, **of_the_real_one: Any) -> None:
            """Ready to sleep."""
            super().__init__(**of_the_real_one)
            self._one_at_a_time = threading.Lock()

        def _fetch_and_decode(self, group: dict[str, Any], measured: dict[str, Any]) -> np.ndarray:
            with self._one_at_a_time:
                begun = time.monotonic()
                time.sleep(seconds_of(group["uri"], seconds))
                write_down(journal, group["uri"])
                measured["decode_ms"] = (time.monotonic() - begun) * 1e3
            measured |= {"duration_s": 1.0, "decode_backend": "stub", "frame_times_s": [0.0]}
            return np.full((1, 8, 8, 3), 128, np.uint8)

    return Decoder


@dataclass
class SleepingEngine:
    """Answers each request after `seconds` of sleep, however many others are in work."""

    seconds: float
    journal: str | None = None
    info = _INFO

    def __post_init__(self) -> None:
        """Load what answers are made of, as a model does before decoders begin: they must not run ahead of it."""
        import pipeline.engine  # noqa: F401  # late: a decoder has this module, too, and no use for torch

    def answer(self, requests: Iterator[Request | None], pruning: PruningConfig) -> Iterator[Answer]:
        """As `VideoLLM.answer` with a stream of requests."""
        asleep: list[tuple[float, int, str]] = []  # when it ends, the request's number, its prompt
        taken = 0
        while True:
            for request in requests:
                if request is None:
                    break
                heapq.heappush(
                    asleep, (time.monotonic() + seconds_of(request.prompt, self.seconds), taken, request.prompt)
                )
                taken += 1
            if not asleep:
                return
            wait_s = asleep[0][0] - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, _POLL_S))
            while asleep and asleep[0][0] <= time.monotonic():
                _, number, prompt = heapq.heappop(asleep)
                write_down(self.journal, prompt)
                yield stub_answer(number, prompt)


def write_down(journal: str | None, line: str) -> None:
    """Add a line to a file that several processes share."""
    if journal is not None:
        with Path(journal).open("a") as file:
            file.write(f"{line}\n")


def stub_answer(number: int, prompt: str, words: int = 3) -> Answer:
    """An answer to `prompt` of so many tokens, as of a model that saw 100 video tokens and pruned none."""
    from pipeline.engine import Answer, AnswerStats

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
    return Answer(f"answer to {prompt}", [1] * words, "stop", stats, number=number)
