"""Whether a request can be answered, and all of its token counts before anything is computed."""

from __future__ import annotations

from dataclasses import replace

from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.errors import PromptTooLongError
from pipeline.engine.families import Family, PromptTokens
from pipeline.engine.memory import MemoryPlan
from pipeline.engine.request import Request, check_request
from pipeline.engine.sampling import Sampler
from pipeline.engine.sequence import Sequence
from pipeline.engine.stop_strings import StopStrings
from pipeline.engine.trace import Tracer
from pruning import Pruner, VideoGrid


def admit(
    family: Family,
    pruner: Pruner,
    number: int,
    request: Request,
    retention: float,
    kv_retention: float = 1.0,
    memory: MemoryPlan | None = None,
) -> Sequence:
    """Check a call's request `number` and plan it; `retention` holds where the request names none.

    Raises ValueError, in one line that names the request, PromptTooLongError if it does not fit the
    model's positions, torch.OutOfMemoryError if by itself it does not fit into `memory`, and what the
    pruner's `plan` raises.
    """
    name = f"request {number}"
    check_request(request, name)
    retention = retention if request.retention is None else request.retention
    try:
        prompt = _tokenize(family, request)
        grid = family.grid(request.num_frames, request.frame_size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if isinstance(request.frames, EncodedVideo):
        _check_encoded(request.frames, family, grid, pruner, name)
    if request.forced_token_ids is not None:
        _check_tokens(request.forced_token_ids, family.decoder.vocabulary, name)
        request = replace(request, max_new_tokens=len(request.forced_token_ids))
    next_position = family.next_position(prompt, grid)
    if next_position + request.max_new_tokens > family.decoder.max_positions:
        raise PromptTooLongError(
            f"{name}: {grid.tokens} video tokens, {prompt.length} prompt tokens and {request.max_new_tokens} new "
            f"tokens exceed the {family.decoder.max_positions} positions of the model"
        )
    num_layers = family.decoder.shape.layers
    plan = pruner.plan(grid, num_layers, retention)
    if memory is not None:
        memory.check_fits(name, plan, prompt.length, request.max_new_tokens, kv_retention)
    return Sequence(
        number=number,
        video=f"request:{number}" if request.video_key is None else f"key:{request.video_key}",
        request=request,
        prompt=prompt,
        grid=grid,
        plan=plan,
        retention=retention,
        sampler=Sampler(request.temperature, request.top_p, request.seed),
        next_position=next_position,
        tracer=Tracer(grid, num_layers) if request.is_traced else None,
        stop=StopStrings(request.stop, family.decode_text) if request.stop and not request.forced_token_ids else None,
        kv_retention=kv_retention,
    )


def _tokenize(family: Family, request: Request) -> PromptTokens:
    """The request's prompt in the chat template, behind the words about the frames' times if it asks for them."""
    if not request.time_instruction:
        return family.tokenize(request.prompt)
    # check_request has seen to it that both are there
    instruction = family.time_instruction(request.frame_times_s or (), request.duration_s or 0.0)
    if instruction is None:
        raise ValueError(f"time_instruction: {family.architecture} was trained without")
    return family.tokenize(f"{instruction}\n{request.prompt}")


def _check_encoded(video: EncodedVideo, family: Family, grid: VideoGrid, pruner: Pruner, name: str) -> None:
    expected = (grid.tokens, family.decoder.shape.hidden)
    if tuple(video.tokens.shape) != expected:
        raise ValueError(
            f"{name}: an encoded video of {video.frames} frames has tokens of shape {list(expected)} in this model, "
            f"not {list(video.tokens.shape)}"
        )
    if video.attention is not None and tuple(video.attention.shape) != expected[:1]:
        raise ValueError(f"{name}: the encoded video's attention must have shape [{expected[0]}]")
    if video.attention is None and pruner.needs.encoder_attention:
        raise ValueError(
            f"{name}: pruning method {pruner.name!r} needs the vision tower's attention, which this encoded video "
            "lacks; encode it with attention=True"
        )


def _check_tokens(token_ids: tuple[int, ...], vocabulary: int, name: str) -> None:
    for token in token_ids:
        if not 0 <= token < vocabulary:
            raise ValueError(f"{name}: forced token {token} is not one of the model's 0 to {vocabulary - 1}")


def check_same_video(first: Sequence, second: Sequence) -> None:
    """Raise ValueError, in one line that names both, if they call videos of different shapes by the same key."""
    if first.video == second.video and _shape(first) != _shape(second):
        raise ValueError(
            f"request {second.number}: video_key {second.request.video_key!r} stands for frames "
            f"of another shape in request {first.number}"
        )


def _shape(sequence: Sequence) -> tuple[int, ...]:
    frames = sequence.request.frames
    # tokens of 2x4 and of 4x2 are as many
    return (*frames.tokens.shape, *(frames.size or ())) if isinstance(frames, EncodedVideo) else tuple(frames.shape)
