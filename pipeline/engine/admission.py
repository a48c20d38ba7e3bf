"""Whether a request can be answered, and all of its token counts before anything is computed."""

from __future__ import annotations

from dataclasses import replace

from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.errors import PromptTooLongError
from pipeline.engine.families import Family
from pipeline.engine.request import Request, check_request
from pipeline.engine.sampling import Sampler
from pipeline.engine.sequence import Sequence
from pipeline.engine.trace import Tracer
from pruning import Pruner, VideoGrid


def admit(family: Family, pruner: Pruner, number: int, request: Request, retention: float) -> Sequence:
    """Check a call's request `number` and plan it; `retention` holds where the request names none.

    Raises ValueError, in one line that names the request, PromptTooLongError if it does not fit the
    model's trained positions, and what the pruner's `plan` raises.
    """
    name = f"request {number}"
    check_request(request, name)
    retention = retention if request.retention is None else request.retention
    try:
        prompt = family.tokenize(request.prompt)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    grid = family.grid(request.num_frames, request.frame_size)
    if isinstance(request.frames, EncodedVideo):
        _check_encoded(request.frames, family, grid, pruner, name)
    if request.forced_token_ids is not None:
        _check_tokens(request.forced_token_ids, family.decoder.vocabulary, name)
        request = replace(request, max_new_tokens=len(request.forced_token_ids))
    next_position = family.next_position(prompt, grid)
    if next_position + request.max_new_tokens > family.decoder.max_positions:
        raise PromptTooLongError(
            f"{name}: {grid.tokens} video tokens, {prompt.length} prompt tokens and {request.max_new_tokens} new "
            f"tokens exceed the {family.decoder.max_positions} positions that the model was trained for"
        )
    num_layers = family.decoder.shape.layers
    return Sequence(
        number=number,
        video=f"request:{number}" if request.video_key is None else f"key:{request.video_key}",
        request=request,
        prompt=prompt,
        grid=grid,
        plan=pruner.plan(grid, num_layers, retention),
        retention=retention,
        sampler=Sampler(request.temperature, request.top_p, request.seed),
        next_position=next_position,
        tracer=Tracer(grid, num_layers) if request.is_traced else None,
    )


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
