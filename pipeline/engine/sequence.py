"""One admitted request: everything that is known about it between its first and its last token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from pipeline.engine.families.base import PromptTokens
from pipeline.engine.request import AnswerStats, Request
from pipeline.engine.sampling import Sampler
from pipeline.engine.stop_strings import StopStrings
from pipeline.engine.trace import Tracer
from pruning import StagePlan, VideoGrid
from pruning.cost import DecoderShape, flops_ratio

_NO_FRAMES = np.empty((0, 0, 0, 3), dtype=np.uint8)


@dataclass(eq=False)
class Sequence:
    """A request with its token counts fixed, and the answer as it grows.

    Order in the sequence: prompt before the video, video tokens, prompt after the video, answer.
    """

    number: int  # place among the call's requests
    video: str  # the same for sequences that show the same frames
    request: Request
    prompt: PromptTokens
    grid: VideoGrid
    plan: StagePlan
    retention: float
    sampler: Sampler
    next_position: int  # of the first generated token: behind the unpruned sequence
    tracer: Tracer | None = None
    stop: StopStrings | None = None
    kv_retention: float = 1.0  # share of each layer's video entries that stay in the cache after prefill
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # of forced tokens
    is_stopped: bool = False
    arrival: int = 0  # what comes later waits longer
    is_to_run_alone: bool = False  # there was not memory enough beside others
    segments: int | None = None
    vision_ms: float = 0.0
    prune_ms: float = 0.0
    prefill_ms: float = 0.0
    generate_ms: float = 0.0
    peak_memory_mb: float | None = None

    def __post_init__(self) -> None:
        """Memory is set aside for the plan of the admission: a later one must fit into it."""
        self._admitted = self.plan

    @property
    def text_tokens(self) -> int:
        """M: tokens of the prompt that are not video."""
        return self.prompt.length

    @property
    def packed_tokens(self) -> int:
        """Tokens that it brings into a prefill pack: those that enter layer 0, text included."""
        return self.plan.counts[0] + self.text_tokens

    @property
    def entering_tokens(self) -> list[int]:
        """Tokens that enter each layer's attention at prefill, text included."""
        return [tokens + self.text_tokens for tokens in self.plan.attention_tokens()]

    @property
    def cached_tokens(self) -> list[int]:
        """Entries of each layer's KV cache after prefill: all text, and the share `kv_retention` of the video."""
        kept = (math.ceil(self.kv_retention * tokens) for tokens in self.plan.attention_tokens())
        return [tokens + self.text_tokens for tokens in kept]

    @property
    def is_revised(self) -> bool:
        """Whether another plan has taken the place of the one at admission."""
        return self.plan is not self._admitted

    def revise(self, stage: int, plan: StagePlan) -> None:
        """Let `plan` hold from `stage` on, at which `plan.counts[stage]` tokens were kept.

        Raises ValueError if it is not about this video, rewrites the stages before, lets tokens come
        back, or lets more tokens into a layer's attention than were admitted.
        """
        old, new = self.plan, plan
        if (new.num_tokens, new.num_layers) != (old.num_tokens, old.num_layers):
            raise ValueError(f"it is for {new.num_tokens} tokens and {new.num_layers} layers")
        if new.layers[: stage + 1] != old.layers[: stage + 1] or new.counts[:stage] != old.counts[:stage]:
            raise ValueError(f"it changes stages before {stage} or the layer of stage {stage}")
        layers_ascend = all(a < b for a, b in pairwise((*new.layers, new.num_layers)))
        counts_fall = all(a >= b for a, b in pairwise((new.num_tokens, *new.counts, 0)))
        if len(new.layers) != len(new.counts) or not layers_ascend or not counts_fall:
            raise ValueError(
                f"its layers {new.layers} must ascend below {new.num_layers} and its counts {new.counts} fall"
            )
        sizes = zip(new.attention_tokens(), self._admitted.attention_tokens(), strict=True)
        for layer, (wanted, admitted) in enumerate(sizes):
            if wanted > admitted:
                raise ValueError(
                    f"it lets {wanted} tokens into the attention of layer {layer}, admitted were {admitted}"
                )
        self.plan = plan

    def append(self, token: int, is_end: bool) -> None:
        """The answer's next token; `is_end` if it is one that ends an answer."""
        self.token_ids.append(token)
        # an end token inside a forced answer is a token like others
        is_last = len(self.token_ids) == self.request.max_new_tokens
        self.is_stopped = is_end and (is_last or not self.request.forced_token_ids)
        if self.stop is not None and not self.is_stopped:
            self.is_stopped = self.stop.are_met(self.token_ids)

    def restart(self) -> None:
        """Forget what a prefill that failed has left behind."""
        self.plan = self._admitted
        self.segments = None
        if self.tracer is not None:
            self.tracer = Tracer(self.grid, self.plan.num_layers)

    def release_frames(self) -> None:
        """Let go of the frames, which nothing needs after prefill."""
        self.request = replace(self.request, frames=_NO_FRAMES)

    @property
    def is_finished(self) -> bool:
        """Whether the answer is complete."""
        return self.is_stopped or len(self.token_ids) >= self.request.max_new_tokens

    def stats(self, shape: DecoderShape) -> AnswerStats:
        """The counts and times to report."""
        return AnswerStats(
            video_tokens=self.grid.tokens,
            prompt_tokens=self.text_tokens,
            output_tokens=len(self.token_ids),
            segments=self.segments,
            stage_layers=list(self.plan.layers),
            stage_tokens=list(self.plan.counts),
            retention_requested=self.retention,
            retention_achieved=self.plan.retention,
            flops_ratio=flops_ratio(shape, self.plan, self.text_tokens),
            kv_ratio=sum(self.cached_tokens) / (self.plan.num_layers * (self.grid.tokens + self.text_tokens)),
            vision_ms=self.vision_ms,
            prune_ms=self.prune_ms,
            prefill_ms=self.prefill_ms,
            generate_ms=self.generate_ms,
            peak_memory_mb=self.peak_memory_mb,
        )
