"""A VideoLLM: videos and prompts in, answers with their costs out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import torch

from pipeline.engine.batching import batches, packs
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.decode import generate
from pipeline.engine.errors import EncodeError, PromptTooLongError
from pipeline.engine.families import Family, family_of
from pipeline.engine.info import DeviceName, DtypeName, ModelInfo, choose_device, choose_dtype, describe
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.prefill import Prefill
from pipeline.engine.request import Answer, Request, check_request
from pipeline.engine.sampling import Sampler
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch, shares
from pipeline.engine.vision import encode_videos
from pruning import Pruner, PruningConfig, make_pruner


@dataclass(eq=False)
class _EncodedVideo:
    """Video tokens [N, hidden], what they cost each answer, and how many prompts still want them."""

    tokens: torch.Tensor
    vision_ms: float
    waiting: int


class VideoLLM:
    """A loaded model on one device; not safe for calls from several threads at once."""

    def __init__(self, checkpoint: Checkpoint, family: Family) -> None:
        """Use `load`."""
        self._checkpoint = checkpoint
        self._family = family

    @classmethod
    def load(cls, source: str | Path, device: DeviceName = "auto", dtype: DtypeName = "auto") -> Self:
        """Load a model from a local folder in the Hugging Face layout, or "builtin:tiny".

        `device` is auto, cpu or cuda; `dtype` auto, float32, bfloat16 or float16. Only safetensors
        are read, no remote code is run. Raises ModelError with one line that says what is wrong.
        """
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen_device)
        checkpoint = Checkpoint.open(source)
        family = family_of(checkpoint).load(checkpoint, chosen_dtype, chosen_device)
        return cls(checkpoint, family)

    @cached_property
    def info(self) -> ModelInfo:
        """What was loaded; the first use reads the folder once more, for the hash."""
        return describe(self._checkpoint, self._family.decoder.dtype, self._family.decoder.device)

    @torch.inference_mode()
    def answer(self, requests: Iterable[Request], pruning: PruningConfig | Pruner) -> list[Answer]:
        """Answer any number of requests, in order.

        `pruning` names a method, or is one of your own; then the requests say how much is kept, 1.0 where
        they do not.

        What else is in the call changes neither the kept tokens nor an answer, up to ties in floating
        point. Raises ValueError (PromptTooLongError where that is the reason) before anything is
        computed if one of the requests cannot be answered, and EncodeError if the vision tower fails.
        """
        pruner, retention = _method(pruning)
        family = self._family
        decoder = family.decoder
        sequences = [
            self._admit(number, request, pruner, retention, f"request {number}")
            for number, request in enumerate(requests)
        ]
        _check_shared_videos(sequences)
        users = Counter(sequence.video for sequence in sequences)
        encoded: dict[str, _EncodedVideo] = {}
        for batch in batches(sequences, decoder.shape, decoder.dtype.itemsize, decoder.device.type == "cuda"):
            lengths = [sequence.cached_tokens for sequence in batch]
            rooms = [sequence.request.max_new_tokens for sequence in batch]
            cache = KVCache(decoder.shape, lengths, rooms, decoder.dtype, decoder.device)
            logits: list[torch.Tensor] = []
            first_row = 0
            for pack in packs(batch):
                videos = self._encode(pack, users, encoded)
                logits.append(Prefill(family, pruner, pack, cache, first_row).run(videos))
                first_row += len(pack)
            generate(family, batch, cache, torch.cat(logits))
        return [self._finish(sequence) for sequence in sequences]

    def _admit(self, number: int, request: Request, pruner: Pruner, retention: float, name: str) -> Sequence:
        """Check a request and fix all of its token counts."""
        check_request(request, name)
        family = self._family
        retention = retention if request.retention is None else request.retention
        try:
            prompt = family.tokenize(request.prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        grid = family.grid(int(request.frames.shape[0]))
        total = grid.tokens + prompt.length
        if total + request.max_new_tokens > family.decoder.max_positions:
            raise PromptTooLongError(
                f"{name}: {grid.tokens} video tokens, {prompt.length} prompt tokens and {request.max_new_tokens} new "
                f"tokens exceed the {family.decoder.max_positions} positions that the model was trained for"
            )
        return Sequence(
            number=number,
            video=f"request:{number}" if request.video_key is None else f"key:{request.video_key}",
            request=request,
            prompt=prompt,
            grid=grid,
            plan=pruner.plan(grid, family.decoder.shape.layers, retention),
            retention=retention,
            sampler=Sampler(request.temperature, request.top_p, request.seed),
            next_position=total,
        )

    def _encode(
        self, pack: list[Sequence], users: Counter[str], encoded: dict[str, _EncodedVideo]
    ) -> list[torch.Tensor]:
        """Video tokens of each sequence; `encoded` carries those that later packs still want."""
        new = {s.video: s for s in pack if s.video not in encoded}
        if new:
            watch = Stopwatch(self._family.decoder.device)
            try:
                tokens = encode_videos(self._family, [s.request.frames for s in new.values()])
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:
                raise EncodeError(str(error)) from error
            parts = shares(watch.lap(), [s.grid.tokens for s in new.values()])
            for video, video_tokens, ms in zip(new, tokens, parts, strict=True):
                encoded[video] = _EncodedVideo(video_tokens, ms / users[video], users[video])
        videos = []
        for sequence in pack:
            entry = encoded[sequence.video]
            sequence.vision_ms = entry.vision_ms
            videos.append(entry.tokens)
            entry.waiting -= 1
            if not entry.waiting:
                del encoded[sequence.video]
        return videos

    def _finish(self, sequence: Sequence) -> Answer:
        """A finished sequence as an answer."""
        return Answer(
            text=self._family.decode_text(sequence.token_ids),
            token_ids=sequence.token_ids,
            finish_reason="stop" if sequence.is_stopped else "length",
            stats=sequence.stats(self._family.decoder.shape),
        )


def _method(pruning: PruningConfig | Pruner) -> tuple[Pruner, float]:
    """The pruner, and the retention of requests that do not name theirs."""
    if isinstance(pruning, PruningConfig):
        return make_pruner(pruning), pruning.retention
    return pruning, 1.0


def _check_shared_videos(sequences: list[Sequence]) -> None:
    """Raise ValueError if two requests call different frames by the same video_key."""
    first: dict[str, Sequence] = {}
    for sequence in sequences:
        other = first.setdefault(sequence.video, sequence)
        if sequence.request.frames.shape != other.request.frames.shape:
            raise ValueError(
                f"request {sequence.number}: video_key {sequence.request.video_key!r} stands for frames "
                f"of another shape in request {other.number}"
            )
