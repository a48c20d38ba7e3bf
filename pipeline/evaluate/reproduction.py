"""How well a pruned model gives the answers that it gives unpruned: what calibration goes by, without labels."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from pipeline.engine import EncodedVideo, Request, VideoLLM
from pipeline.engine.info import DeviceName, DtypeName
from pruning import PruningConfig

MAX_ANSWER_TOKENS = 128


@dataclass(frozen=True, eq=False)
class Sample:
    """A video and the prompts that are asked about it."""

    video: EncodedVideo
    prompts: tuple[str, ...]


class Source(Protocol):
    """Where samples come from; it pickles, so that a worker can load its own."""

    def load(self, llm: VideoLLM, part: int, parts: int) -> list[Sample]:
        """The samples of one of `parts` equal parts, encoded."""
        ...


class Reproduction:
    """A model, samples, and the answers that it gives to them with all video tokens."""

    def __init__(self, llm: VideoLLM, samples: Sequence[Sample]) -> None:
        """Answer every prompt once, greedily and unpruned."""
        self._llm = llm
        self._asked = [(number, sample, prompt) for number, sample in enumerate(samples) for prompt in sample.prompts]
        self._videos = len(samples)
        requests = [self._request(number, sample, prompt, 1.0) for number, sample, prompt in self._asked]
        self._answers = [answer.token_ids for answer in llm.answer(requests, PruningConfig(method="none"))]

    def likelihood(self, config: PruningConfig, retentions: Sequence[float]) -> np.ndarray:
        """Mean log-probability (natural) of a token of those answers under pruning, [R, V] float64.

        Each answer is forced token by token; a video's number is the mean over its prompts.
        """
        rows = []
        for retention in retentions:
            requests = [
                self._request(number, sample, prompt, retention, tuple(tokens))
                for (number, sample, prompt), tokens in zip(self._asked, self._answers, strict=True)
            ]
            told = [answer.logprobs or [] for answer in self._llm.answer(requests, config)]
            rows.append(self._by_video([float(np.mean(logprobs)) for logprobs in told]))
        return np.stack(rows)

    def agreement(self, config: PruningConfig, retentions: Sequence[float]) -> np.ndarray:
        """Share of the prompts to which the pruned model's own greedy answer is the same, [R, V] float64."""
        rows = []
        for retention in retentions:
            requests = [self._request(number, sample, prompt, retention) for number, sample, prompt in self._asked]
            given = [answer.token_ids for answer in self._llm.answer(requests, config)]
            rows.append(self._by_video([float(a == b) for a, b in zip(given, self._answers, strict=True)]))
        return np.stack(rows)

    def _by_video(self, values: Sequence[float]) -> np.ndarray:
        owners = np.array([number for number, _, _ in self._asked])
        return np.bincount(owners, values, self._videos) / np.bincount(owners, minlength=self._videos)

    @staticmethod
    def _request(
        number: int, sample: Sample, prompt: str, retention: float, forced: tuple[int, ...] | None = None
    ) -> Request:
        return Request(
            sample.video,
            prompt,
            max_new_tokens=MAX_ANSWER_TOKENS,
            video_key=str(number),
            retention=retention,
            forced_token_ids=forced,
        )


Measure = Callable[[str, PruningConfig, Sequence[float]], np.ndarray]
"""Applies "likelihood" or "agreement" of all parts: [R, V]."""


@contextmanager
def reproduction(
    model: str, device: DeviceName, dtype: DtypeName, source: Source, workers: int, loaded: VideoLLM | None = None
) -> Iterator[Measure]:
    """Samples spread over `workers` processes of one thread; 1 works here, with the model `loaded`.

    On few cores and a small model, processes of one thread do more than one process of many threads.
    """
    if workers == 1:
        llm = loaded or VideoLLM.load(model, device=device, dtype=dtype)
        here = Reproduction(llm, source.load(llm, 0, 1))
        yield lambda measure, config, retentions: getattr(here, measure)(config, retentions)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch hangs in its thread pool
    # One process for each part: what is encoded and answered there stays there.
    pools = [ProcessPoolExecutor(1, context) for _ in range(workers)]
    try:
        starts = [pool.submit(_start, model, device, dtype, source, part, workers) for part, pool in enumerate(pools)]
        for start in starts:
            start.result()

        def measure_all(measure: str, config: PruningConfig, retentions: Sequence[float]) -> np.ndarray:
            parts = [pool.submit(_measure, measure, config, retentions) for pool in pools]
            return np.concatenate([part.result() for part in parts], axis=1)

        yield measure_all
    finally:
        for pool in pools:
            pool.shutdown(wait=True, cancel_futures=True)


_reproduction: Reproduction | None = None


def _start(model: str, device: DeviceName, dtype: DtypeName, source: Source, part: int, parts: int) -> None:
    global _reproduction
    torch.set_num_threads(1)
    llm = VideoLLM.load(model, device=device, dtype=dtype)
    _reproduction = Reproduction(llm, source.load(llm, part, parts))


def _measure(measure: str, config: PruningConfig, retentions: Sequence[float]) -> np.ndarray:
    return getattr(_reproduction, measure)(config, retentions)
