"""The engine's answer to a batch of videos, timed by phase as it reports them itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from pipeline.benchmark.engine.measurement import Measurement
from pipeline.benchmark.engine.subject import Subject
from pipeline.engine import Request
from pruning import PruningConfig, StagePlan

Preset = Literal["author", "default"] | None

SYSTEM = "engine"


class Engine:
    """The engine as a caller uses it."""

    def __init__(self, subject: Subject, preset: Preset = None) -> None:
        """`preset` None is what a user gets who names nothing: the model's own calibration, else the authors'."""
        self._subject = subject
        self._preset = preset

    def __call__(self, videos: Sequence[np.ndarray], retention: float, new_tokens: int) -> Measurement:
        """Answer greedily with exactly `new_tokens` tokens a video, at a mean-over-layers `retention`."""
        subject = self._subject
        pruning = PruningConfig(method="hieravid", retention=retention, preset=self._preset)
        requests = [Request(video, "", max_new_tokens=new_tokens) for video in videos]
        start = time.perf_counter()
        answers = subject.llm.answer(requests, pruning)
        if subject.device.type == "cuda":
            torch.cuda.synchronize(subject.device)
        total_ms = (time.perf_counter() - start) * 1e3
        stats = [answer.stats for answer in answers]
        if any(s.output_tokens != new_tokens for s in stats):
            raise RuntimeError(f"the engine did not generate {new_tokens} tokens for each video")
        layers = subject.family.decoder.shape.layers
        return Measurement(
            token_ids=[answer.token_ids for answer in answers],
            plans=[StagePlan(s.video_tokens, layers, tuple(s.stage_layers), tuple(s.stage_tokens)) for s in stats],
            segments=[s.segments for s in stats],
            text_tokens=stats[0].prompt_tokens,
            vision_ms=sum(s.vision_ms for s in stats),
            prune_ms=sum(s.prune_ms for s in stats),
            prefill_ms=sum(s.prefill_ms for s in stats),
            decode_ms=sum(s.generate_ms for s in stats),
            total_ms=total_ms,
            peak_mb=max((s.peak_memory_mb for s in stats if s.peak_memory_mb is not None), default=None),
        )
