"""Sample pictures of a run, `runs/<run_id>/samples/`: what the model was allowed to see of a few rows, and its answers.

A sample is two files: `<item_id>.webp` holds some of the video's frames, each above itself under its
token grid, in rows of `COLUMNS`, and `<item_id>.json` what it shows, written last:

    format 1 · item_id, video_id, prompt, answer (texts) · shown (numbers of the frames in the picture, from 0)
    frames (of the token grid), video_tokens, retention, stage_layers, stage_tokens, num_layers
    kept, merged (how many tokens of the whole video reach the last layer, and live on in another)

Kept tokens are bright with a rim, the others dark and pale, the earlier they went the darker.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError
from pipeline.listing import list_below
from pipeline.storage import join, read_bytes, write_atomic

if TYPE_CHECKING:
    from pipeline.engine import Answer

COLUMNS = 4
_SHOWN = 8  # frames of a picture
_WIDTH, _NEAR, _GAP = 240, 4, 14  # pixels: of a frame's width, between frames, between lines of them
_QUALITY = 82
_FORMAT = 1
_LARGEST = 1_000_000  # bytes of a picture that is read
_IMAGES = ((b"\x89PNG\r\n\x1a\n", "png"), (b"RIFF", "webp"))


@dataclass(frozen=True)
class Sample:
    """A row of which a picture was kept; see the module."""

    item_id: str
    video_id: str
    prompt: str
    answer: str
    shown: list[int]
    frames: int
    video_tokens: int
    retention: float
    stage_layers: list[int]
    stage_tokens: list[int]
    num_layers: int
    kept: int
    merged: int


@dataclass(frozen=True)
class Picture:
    """A sample as it is read back: `image` are the bytes of a picture of the `kind` webp or png."""

    sample: Sample
    image: bytes
    kind: str


def write_sample(folder: str, item_id: str, video_id: str, prompt: str, frames: np.ndarray, answer: Answer) -> bool:
    """Write the sample of a row whose request was traced; False, and nothing, where its tokens lie on no rectangle.

    `frames` is uint8 [T, H, W, 3], as the model was given them. Raises UserError or ClusterError where
    the folder cannot be written.
    """
    from pipeline.picture_paint import fates_of

    trace = answer.trace
    if trace is None:
        raise ValueError("a sample needs an answer with a trace")
    grid = trace.grid
    if grid.columns is None or grid.positions % grid.columns or not 0 < grid.frames <= len(frames):
        return False
    shown = sorted({round(place) for place in np.linspace(0, grid.frames - 1, min(_SHOWN, grid.frames))})
    fates = list(fates_of(trace))
    image = _sheet([(frames[number * len(frames) // grid.frames], fates[number]) for number in shown])
    stats = answer.stats
    sample = Sample(
        item_id=item_id,
        video_id=video_id,
        prompt=prompt,
        answer=answer.text,
        shown=shown,
        frames=grid.frames,
        video_tokens=stats.video_tokens,
        retention=stats.retention_achieved,
        stage_layers=list(stats.stage_layers),
        stage_tokens=list(stats.stage_tokens),
        num_layers=trace.num_layers,
        kept=int((trace.alive_until == trace.num_layers).sum()),
        merged=int((trace.merged_into != np.arange(grid.tokens)).sum()),
    )
    write_atomic(join(folder, f"{item_id}.webp"), image)
    told = json.dumps({"format": _FORMAT, **asdict(sample)}, ensure_ascii=False)
    write_atomic(join(folder, f"{item_id}.json"), told.encode("utf-8", "replace"))
    return True


def read_samples(folder: str, most: int) -> Iterator[Picture]:
    """The first `most` samples of a folder that are whole, in the order of their names; none where there is no folder.

    Raises ClusterError where the storage cannot be reached.
    """
    found = 0
    for uri in list_below(folder):
        if found == most:
            return
        if uri.endswith(".json") and (picture := _read(uri)) is not None:
            found += 1
            yield picture


def _read(uri: str) -> Picture | None:
    """A sample; None for anything that is not one of ours, or whose picture is missing or too large."""
    try:
        told = json.loads(read_bytes(uri))
        if told["format"] != _FORMAT:
            return None
        sample = Sample(**{one.name: told[one.name] for one in fields(Sample)})
        image = read_bytes(f"{uri.removesuffix('.json')}.webp")
    except (ValueError, TypeError, KeyError, UserError):
        return None
    kind = next((name for start, name in _IMAGES if image.startswith(start)), None)
    return Picture(sample, image, kind) if kind and len(image) <= _LARGEST and _is_sound(sample) else None


def _is_sound(sample: Sample) -> bool:
    """Whether the values have the types that they are shown as: the file may be anybody's."""
    texts = (sample.item_id, sample.video_id, sample.prompt, sample.answer)
    lists = (sample.shown, sample.stage_layers, sample.stage_tokens)
    whole = (sample.frames, sample.video_tokens, sample.num_layers, sample.kept, sample.merged)
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(one, list) and all(isinstance(value, int) for value in one) for one in lists)
        and all(isinstance(value, int) for value in whole)
        and isinstance(sample.retention, int | float)
    )


def _sheet(painted: list) -> bytes:
    """Frames side by side, each above itself with its tokens' fates, as WebP."""
    from PIL import Image

    from pipeline.picture_paint import paint_frame, plain_frame

    frame = painted[0][0]
    height = max(1, round(_WIDTH * frame.shape[0] / frame.shape[1]))
    columns = min(COLUMNS, len(painted))
    lines = -(-len(painted) // columns)
    line_height = 2 * height + _NEAR + _GAP
    size = (lines * line_height - _GAP, columns * (_WIDTH + _NEAR) - _NEAR, 4)
    sheet = np.zeros(size, np.uint8)  # gaps stay clear, in whatever colour the page is
    for number, (pixels, fates) in enumerate(painted):
        line, column = divmod(number, columns)
        y, x = line * line_height, column * (_WIDTH + _NEAR)
        for one in (plain_frame(pixels, height, _WIDTH), paint_frame(pixels, fates, height, _WIDTH)):
            sheet[y : y + height, x : x + _WIDTH, :3] = one
            sheet[y : y + height, x : x + _WIDTH, 3] = 255
            y += height + _NEAR
    out = io.BytesIO()
    Image.fromarray(sheet, "RGBA").save(out, "WEBP", quality=_QUALITY, method=4)
    return out.getvalue()
