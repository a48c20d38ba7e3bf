"""A VideoLLM: videos and prompts in, answers with their costs out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Several
from functools import cached_property
from pathlib import Path
from typing import Self, cast, overload

import numpy as np
import torch

from pipeline.engine.admission import admit, check_same_video
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.decode import DecodeStep, make_decode_step
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.encoding import encode_frames
from pipeline.engine.errors import ModelError
from pipeline.engine.failures import Failed
from pipeline.engine.families import Family, family_of
from pipeline.engine.info import DeviceName, DtypeName, ModelInfo, choose_device, choose_dtype, describe
from pipeline.engine.memory import MemoryPlan
from pipeline.engine.quantization import QuantizationName, check_quantization
from pipeline.engine.quantization import apply as quantize
from pipeline.engine.request import Answer, Failure, Request, check_frames
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.sequence import Sequence
from pipeline.engine.weight_sizes import check_weights_fit
from pruning import Pruner, PruningConfig, VideoGrid, make_pruner
from pruning.calibration import resolve_options
from pruning.cost import DecoderShape


class VideoLLM:
    """A loaded model on one device; not safe for calls from several threads at once."""

    def __init__(self, checkpoint: Checkpoint, family: Family, quantization: QuantizationName = "none") -> None:
        """Use `load`."""
        self._checkpoint = checkpoint
        self._family = family
        self._quantization = quantization

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: DeviceName = "auto",
        dtype: DtypeName = "auto",
        quantization: QuantizationName = "none",
        max_positions: int | None = None,
    ) -> Self:
        """Load a model from a local folder in its published layout, or "builtin:tiny".

        `device` is auto, cpu or cuda; `dtype` auto, float32, bfloat16 or float16; `quantization`, of the
        language model's weights, none, int8 or fp8. `max_positions` lets sequences be as long as that,
        although the model was trained for shorter ones. Only safetensors are read, no remote code is
        run. Raises ModelError with one line that says what is wrong.
        """
        chosen_device = choose_device(device)
        chosen_dtype = choose_dtype(dtype, chosen_device)
        check_quantization(quantization, chosen_dtype, chosen_device)
        if max_positions is not None and max_positions < 1:
            raise ModelError(f"max_positions must be at least 1, not {max_positions}")
        checkpoint = Checkpoint.open(source)
        family_class = family_of(checkpoint)
        check_weights_fit(checkpoint, chosen_dtype, chosen_device, quantization)
        if quantization == "none":
            family = family_class.load(checkpoint, chosen_dtype, chosen_device)
        else:
            family = _load_quantized(checkpoint, family_class, chosen_dtype, chosen_device, quantization)
        if max_positions is not None:
            family.decoder.max_positions = max_positions
        return cls(checkpoint, family, quantization)

    @cached_property
    def info(self) -> ModelInfo:
        """What was loaded; the first use reads the folder once more, for the hash."""
        decoder = self._family.decoder
        return describe(self._checkpoint, decoder.dtype, decoder.device, self._quantization)

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
        return encode_frames(self._family, videos, attention, self._plan_memory().patches)

    @overload
    def answer(
        self, requests: Iterator[Request | None], pruning: PruningConfig | Pruner
    ) -> Iterator[Answer | Failure]: ...

    @overload
    def answer(self, requests: Several[Request], pruning: PruningConfig | Pruner) -> list[Answer]: ...

    def answer(
        self, requests: Several[Request] | Iterator[Request | None], pruning: PruningConfig | Pruner
    ) -> list[Answer] | Iterator[Answer | Failure]:
        """Answer any number of requests: a sequence in order, an iterator as they finish.

        `pruning` names a method, or is one of your own; then the requests say how much is kept, 1.0 where
        they do not. What else is in the call changes neither the kept tokens nor an answer, up to ties in
        floating point.

        A sequence raises ValueError (PromptTooLongError where that is the reason) before anything is
        computed if one of the requests cannot be answered, EncodeError if the vision tower fails, and
        torch.OutOfMemoryError if a request by itself does not fit.

        An iterator is read while answers are made, only a little ahead of them, in the thread that reads
        the answers: one that has no request just now should give None in place of waiting, so that
        those before can go on. A request that fails gives a Failure and harms no other. Answers and
        failures are numbered by their requests, None not counted.
        """
        pruner, retention, kv_retention = self._method(pruning)
        memory = self._plan_memory()

        def admitted(number: int, request: Request) -> Sequence:
            return admit(self._family, pruner, number, request, retention, kv_retention, memory)

        if hasattr(requests, "__next__"):
            source = _admit_stream(cast("Iterator[Request | None]", requests), admitted)
            return self._stream(Scheduler(self._family, pruner, memory, self._decode_step, source))
        sequences = [admitted(number, request) for number, request in enumerate(cast("Several[Request]", requests))]
        first: dict[str, Sequence] = {}
        for sequence in sequences:
            check_same_video(first.setdefault(sequence.video, sequence), sequence)
        scheduler = Scheduler(self._family, pruner, memory, self._decode_step)
        scheduler.enter(sequences)
        for outcome in scheduler.run():
            if isinstance(outcome, Failed):
                raise outcome.error
        return [self._finish(sequence) for sequence in sequences]

    def _stream(self, scheduler: Scheduler) -> Iterator[Answer | Failure]:
        """What the scheduler gives, for the caller."""
        for outcome in scheduler.run():
            if isinstance(outcome, Sequence):
                try:
                    answer: Answer | Failure = self._finish(outcome)
                except Exception as error:  # whatever it is: the others go on
                    answer = Failed(outcome.number, error).as_failure()
            else:
                answer = outcome.as_failure()
            del outcome  # an error's traceback holds tensors
            yield answer

    @cached_property
    def _decode_step(self) -> DecodeStep:
        return make_decode_step(self._family.decoder)

    def _plan_memory(self) -> MemoryPlan:
        """Budgets for a call, by what is free now."""
        memory = MemoryPlan.of(self._family.decoder)
        self._family.decoder.mlp_rows = memory.mlp_rows
        return memory

    def _finish(self, sequence: Sequence) -> Answer:
        """A finished sequence as an answer."""
        text = self._family.decode_text(sequence.token_ids)
        return Answer(
            text=(text if sequence.stop is None else sequence.stop.cut(text)).strip(),
            token_ids=sequence.token_ids,
            finish_reason="stop" if sequence.is_stopped else "length",
            stats=sequence.stats(self._family.decoder.shape),
            logprobs=sequence.logprobs if sequence.request.forced_token_ids else None,
            trace=sequence.tracer.finish(sequence.plan.layers) if sequence.tracer else None,
            number=sequence.number,
        )

    def _method(self, pruning: PruningConfig | Pruner) -> tuple[Pruner, float, float]:
        """The pruner, the retention of requests that do not name theirs, and that of the KV cache."""
        if isinstance(pruning, PruningConfig):
            return make_pruner(self.resolve(pruning)), pruning.retention, pruning.kv_retention
        return pruning, 1.0, 1.0


def _load_quantized(
    checkpoint: Checkpoint,
    family_class: type[Family],
    dtype: torch.dtype,
    device: torch.device,
    quantization: QuantizationName,
) -> Family:
    """A model whose whole weights are in main memory alone: the device gets each layer as it is quantized."""
    cpu = torch.device("cpu")
    check_weights_fit(checkpoint, dtype, cpu)
    family = family_class.load(checkpoint, dtype, cpu)
    quantize(family.decoder, quantization, device)
    with torch.inference_mode(False):  # tensors of torchao's cannot be exchanged inside of it
        family.to(device)
    return family


def _admit_stream(
    requests: Iterator[Request | None], admitted: Callable[[int, Request], Sequence]
) -> Iterator[Sequence | Failed | None]:
    """Requests as sequences, those that are refused as failures, and None as it is."""
    number = 0
    for request in requests:
        item: Sequence | Failed | None = None
        if request is not None:
            try:
                item = admitted(number, request)
            except Exception as error:  # whatever a method or a tokenizer raises: the others go on
                item = Failed(number, error, is_refused=True)
            number += 1
        yield item
