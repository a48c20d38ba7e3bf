"""A VideoLLM: videos and prompts in, answers with their costs out."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch

from pipeline.engine.admission import admit
from pipeline.engine.batching import batches, packs
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.decode import generate
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.encoding import VideoEncoder, encode_frames
from pipeline.engine.families import Family, family_of
from pipeline.engine.info import DeviceName, DtypeName, ModelInfo, choose_device, choose_dtype, describe
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.prefill import Prefill
from pipeline.engine.request import Answer, Request, check_frames
from pipeline.engine.sequence import Sequence
from pruning import Pruner, PruningConfig, VideoGrid, make_pruner
from pruning.calibration import resolve_options
from pruning.cost import DecoderShape


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

    def resolve(self, pruning: PruningConfig) -> PruningConfig:
        """`pruning` with every option written out, from the calibration that it names or this model's own.

        Raises CalibrationError (a ValueError) if that cannot be read or was made for another model.
        """
        own = self._checkpoint.calibration
        return resolve_options(pruning, own, self._checkpoint.name, lambda: self.info.model_hash)

    @property
    def shape(self) -> DecoderShape:
        """Sizes of the decoder, as `pruning.cost` takes them."""
        return self._family.decoder.shape

    def grid(self, num_frames: int, size: tuple[int, int] | None = None) -> VideoGrid:
        """The token grid of a video of `num_frames` frames of `size` (height, width) pixels; None: the largest."""
        return self._family.grid(num_frames, size)

    def prompt_tokens(self, prompt: str) -> int:
        """M, the tokens that a prompt adds to those of the video, chat template included."""
        return self._family.tokenize(prompt).length

    @torch.inference_mode()
    def encode(self, videos: Iterable[np.ndarray | torch.Tensor], attention: bool = False) -> list[EncodedVideo]:
        """Run the vision tower alone, for videos that several calls will ask about.

        `videos` are uint8 RGB [T, H, W, 3] as in `Request.frames`, where the results may take their
        place; with `attention` they serve methods that need the encoder's attention, too. Raises
        ValueError for something else than frames, and EncodeError if the vision tower fails.
        """
        videos = list(videos)
        for number, frames in enumerate(videos):
            check_frames(frames, f"video {number}")
        # Tokens come out as views of one tensor: a copy lets each video be kept, or freed, by itself.
        return [
            EncodedVideo(
                tokens=video.tokens.clone(),
                frames=video.frames,
                attention=None if video.attention is None else video.attention.clone(),
                vision_ms=video.vision_ms,
                size=video.size,
            )
            for video in encode_frames(self._family, videos, attention)
        ]

    @torch.inference_mode()
    def answer(self, requests: Iterable[Request], pruning: PruningConfig | Pruner) -> list[Answer]:
        """Answer any number of requests, in order.

        `pruning` names a method, or is one of your own; then the requests say how much is kept, 1.0 where
        they do not.

        What else is in the call changes neither the kept tokens nor an answer, up to ties in floating
        point. Raises ValueError (PromptTooLongError where that is the reason) before anything is
        computed if one of the requests cannot be answered, and EncodeError if the vision tower fails.
        """
        pruner, retention = self._method(pruning)
        family = self._family
        decoder = family.decoder
        sequences = [admit(family, pruner, number, request, retention) for number, request in enumerate(requests)]
        encoder = VideoEncoder(family, sequences, pruner.needs.encoder_attention)
        for batch in batches(sequences, decoder.shape, decoder.dtype.itemsize, decoder.device.type == "cuda"):
            lengths = [sequence.cached_tokens for sequence in batch]
            rooms = [sequence.request.max_new_tokens for sequence in batch]
            cache = KVCache(decoder.shape, lengths, rooms, decoder.dtype, decoder.device)
            logits: list[torch.Tensor] = []
            first_row = 0
            for pack in packs(batch):
                videos = encoder.encode(pack)
                logits.append(Prefill(family, pruner, pack, cache, first_row).run(videos))
                first_row += len(pack)
            if any(sequence.is_revised for sequence in batch):
                cache.shorten([sequence.cached_tokens for sequence in batch])
            generate(family, batch, cache, torch.cat(logits))
        return [self._finish(sequence) for sequence in sequences]

    def _finish(self, sequence: Sequence) -> Answer:
        """A finished sequence as an answer."""
        return Answer(
            text=self._family.decode_text(sequence.token_ids),
            token_ids=sequence.token_ids,
            finish_reason="stop" if sequence.is_stopped else "length",
            stats=sequence.stats(self._family.decoder.shape),
            logprobs=sequence.logprobs if sequence.request.forced_token_ids else None,
            trace=sequence.tracer.finish(sequence.plan.layers) if sequence.tracer else None,
        )

    def _method(self, pruning: PruningConfig | Pruner) -> tuple[Pruner, float]:
        """The pruner, and the retention of requests that do not name theirs."""
        if isinstance(pruning, PruningConfig):
            return make_pruner(self.resolve(pruning)), pruning.retention
        return pruning, 1.0
