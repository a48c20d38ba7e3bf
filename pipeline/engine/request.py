"""What goes into the engine and what comes out of it, one video and one prompt at a time."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch

from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.trace import TokenTrace

FailureCode = Literal[
    "invalid_request",
    "prompt_too_long",
    "retention_unreachable",
    "encode_failed",
    "out_of_memory",
    "generate_failed",
]


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt about one video.

    `frames` is uint8 RGB [T, H, W, 3], T >= 1, of any size, or what `VideoLLM.encode` made of them;
    `frame_times_s` (T numbers) says when they were shown, `duration_s` how long the whole video is;
    `time_instruction` puts both before the prompt in the words that the model was trained with.
    Requests of one call that share `video_key` show the same frames: these are encoded once. `seed`
    drives sampling and random pruning. `retention` in (0, 1] overrides that of the pruning config.
    `temperature` 0 is greedy; `top_p` keeps the smallest set of tokens whose probability reaches it.
    An answer ends before the first of the strings `stop` that it would contain. `forced_token_ids`
    are the answer, word for word, whatever the model would have said and whatever `stop` says (teacher
    forcing): the answer tells how likely they were, and their number takes the place of
    `max_new_tokens`. `is_traced` asks for `Answer.trace`.
    """

    frames: np.ndarray | torch.Tensor | EncodedVideo
    prompt: str
    max_new_tokens: int = 128
    frame_times_s: tuple[float, ...] | list[float] | None = None
    video_key: str | None = None
    seed: int = 0
    retention: float | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    duration_s: float | None = None
    time_instruction: bool = False
    forced_token_ids: tuple[int, ...] | None = None
    is_traced: bool = False

    @property
    def num_frames(self) -> int:
        """T."""
        return self.frames.frames if isinstance(self.frames, EncodedVideo) else int(self.frames.shape[0])

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Height and width of the frames in pixels; None for an encoded video that does not say."""
        if isinstance(self.frames, EncodedVideo):
            return self.frames.size
        return int(self.frames.shape[1]), int(self.frames.shape[2])


@dataclass(frozen=True)
class AnswerStats:
    """Counts and times of one answer.

    `video_tokens` is N and `prompt_tokens` M of the unpruned sequence (M counts all that is not a
    video token). `stage_tokens[s]` video tokens enter the MLP of layer `stage_layers[s]` and of all
    up to the next stage. `retention_*` are means over the decoder layers; `flops_ratio` and
    `kv_ratio` compare the language model's prefill and its cache with the unpruned ones. Times are
    milliseconds, attributed: over the answers of a call they sum to the time spent. `prefill_ms`
    excludes `prune_ms`. `peak_memory_mb` (MiB) is the most that the call had in use so far, weights
    included: what torch allocated on CUDA, else the whole process; None where the system does not say.
    """

    video_tokens: int
    prompt_tokens: int
    output_tokens: int
    segments: int | None
    stage_layers: list[int]
    stage_tokens: list[int]
    retention_requested: float
    retention_achieved: float
    flops_ratio: float
    kv_ratio: float
    vision_ms: float
    prune_ms: float
    prefill_ms: float
    generate_ms: float
    peak_memory_mb: float | None = None


@dataclass(frozen=True)
class Answer:
    """The generated text; `number` is the request's place in the call.

    `finish_reason` is "stop" if the model ended the answer, `token_ids` then ends with its end-of-text
    token, or if a stop string did, before which the text is cut; "length" at `max_new_tokens`.

    `logprobs`, of a request with forced tokens, are the natural logarithms of the probabilities that
    the model gave to each of them, of its distribution as it is (temperature 1, top_p 1). `trace`, of
    a traced request, says what became of each video token.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    stats: AnswerStats
    logprobs: list[float] | None = None
    trace: TokenTrace | None = None
    number: int = 0


@dataclass(frozen=True)
class Failure:
    """A request of a stream that could not be answered; the others go on.

    `number` is its place among the requests, `code` one of invalid_request, prompt_too_long,
    retention_unreachable, encode_failed, out_of_memory and generate_failed, `message` one line.
    """

    number: int
    code: FailureCode
    message: str


def check_request(request: Request, name: str) -> None:
    """Raise ValueError, in one line that starts with `name`, if the request makes no sense."""
    if not isinstance(request.frames, EncodedVideo):
        check_frames(request.frames, name)
    if request.frame_times_s is not None and len(request.frame_times_s) != request.num_frames:
        raise ValueError(f"{name}: {len(request.frame_times_s)} frame_times_s for {request.num_frames} frames")
    if not isinstance(request.prompt, str):
        raise ValueError(f"{name}: the prompt must be text, not {type(request.prompt).__name__}")
    if not isinstance(request.max_new_tokens, Integral):
        raise ValueError(f"{name}: max_new_tokens must be a whole number, not {request.max_new_tokens!r}")
    if request.max_new_tokens < 1:
        raise ValueError(f"{name}: max_new_tokens must be at least 1, not {request.max_new_tokens}")
    if request.retention is not None and not 0.0 < request.retention <= 1.0:
        raise ValueError(f"{name}: retention must be in (0, 1], not {request.retention}")
    if not request.temperature >= 0.0:
        raise ValueError(f"{name}: temperature must be 0 or more, not {request.temperature}")
    if not 0.0 < request.top_p <= 1.0:
        raise ValueError(f"{name}: top_p must be in (0, 1], not {request.top_p}")
    is_list = isinstance(request.stop, tuple | list)
    if not is_list or not all(isinstance(string, str) and string for string in request.stop):
        raise ValueError(f"{name}: stop must be a list of strings that are not empty, not {request.stop!r}")
    if request.time_instruction and (request.frame_times_s is None or request.duration_s is None):
        raise ValueError(f"{name}: time_instruction needs frame_times_s and duration_s")
    if request.forced_token_ids is not None:
        is_list = isinstance(request.forced_token_ids, tuple | list)
        if not is_list or not all(isinstance(token, Integral) for token in request.forced_token_ids):
            raise ValueError(f"{name}: forced_token_ids must be a list of whole numbers")
        if not request.forced_token_ids:
            raise ValueError(f"{name}: forced_token_ids must hold at least one token")


def check_frames(frames: Any, name: str) -> None:
    """Raise ValueError, in one line that starts with `name`, unless these are uint8 frames [T, H, W, 3]."""
    if not isinstance(frames, np.ndarray | torch.Tensor):
        raise ValueError(f"{name}: frames must be a numpy array or a torch tensor, not {type(frames).__name__}")
    if frames.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"{name}: frames must be uint8, not {frames.dtype}")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"{name}: frames must have shape [T, H, W, 3], not {list(frames.shape)}")
    if min(frames.shape) < 1:
        raise ValueError(f"{name}: frames are empty, shape {list(frames.shape)}")
