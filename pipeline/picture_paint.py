"""The pixels of one frame under its token grid: what stays is bright, what goes is dark, what merges is hatched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.engine import TokenTrace

_RIM = 235.0  # of areas that stay, lest a dark scene's be taken for gone
# Hatching of merged tokens and outline of the one that holds them: a run of tokens has one colour.
_RUN_COLORS = np.array(
    ((0, 215, 255), (255, 95, 215), (255, 200, 40), (110, 240, 120), (255, 135, 60), (175, 150, 255), (60, 165, 255)),
    float,
)
_DARKEST, _LIGHTEST = 0.1, 0.7  # brightness left of a token that goes at layer 0, and would at the last one
_HATCH_PERIOD, _HATCH_WIDTH = 7, 1  # pixels


@dataclass(frozen=True)
class Fates:
    """What became of one frame's tokens, each [rows, columns].

    `alive_until` (int) is the layer at which a token, or for a merged one the token that holds it, goes:
    `num_layers` if it stays. `merged` (bool) are tokens that live on in another one, `holders` (bool)
    those in which another one lives on; both have the `run` (int) of the token that lives on, by which they
    are coloured.
    """

    num_layers: int
    alive_until: np.ndarray
    merged: np.ndarray
    holders: np.ndarray
    run: np.ndarray


def fates_of(trace: TokenTrace) -> Iterator[Fates]:
    """What became of the tokens of each frame. Their grid must be a rectangle."""
    grid = trace.grid
    merged = trace.merged_into != np.arange(grid.tokens)
    holders = np.isin(np.arange(grid.tokens), trace.merged_into[merged])
    # Tokens beside and above each other, and those of the next frame, get runs of other colours.
    run = (trace.column + 3 * trace.row + 5 * trace.frame)[trace.merged_into]
    parts = (trace.alive_until[trace.merged_into], merged, holders, run)
    for fates in zip(*(part.reshape(grid.frames, -1, grid.columns or 1) for part in parts), strict=True):
        yield Fates(trace.num_layers, *fates)


def brightness(layer: int | np.ndarray, num_layers: int) -> np.ndarray:
    """Share of brightness left of a token that goes at `layer`; 1 for one that stays."""
    left = _DARKEST + (_LIGHTEST - _DARKEST) * np.asarray(layer) / num_layers
    return np.where(np.asarray(layer) < num_layers, left, 1.0)


def plain_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame uint8 [H, W, 3] as uint8 [height, width, 3], by its nearest pixels."""
    y, x = np.arange(height), np.arange(width)
    return frame[y * frame.shape[0] // height][:, x * frame.shape[1] // width]


def paint_frame(frame: np.ndarray, fates: Fates, height: int, width: int) -> np.ndarray:
    """A frame uint8 [H, W, 3] as uint8 [height, width, 3] with its tokens' fates on it.

    The model sees the frame squeezed into its own shape, so token rows and columns divide the
    picture's height and width evenly.
    """
    rows, columns = fates.alive_until.shape
    y, x = np.arange(height), np.arange(width)
    picture = plain_frame(frame, height, width).astype(np.float64)
    row, column = y * rows // height, x * columns // width

    def spread(tokens: np.ndarray) -> np.ndarray:
        return tokens[row][:, column]

    left = brightness(fates.alive_until, fates.num_layers)
    is_gone = spread(fates.alive_until < fates.num_layers)[..., None]
    picture = np.where(is_gone, (picture + picture.mean(axis=2, keepdims=True)) / 2, picture)
    picture *= spread(left)[..., None]
    hatch = (y[:, None] + x[None, :]) % _HATCH_PERIOD < _HATCH_WIDTH
    # visible on the darkest token, too
    ink = _RUN_COLORS[spread(fates.run) % len(_RUN_COLORS)] * np.clip(spread(left), 0.4, 1.0)[..., None]
    picture = np.where((spread(fates.merged) & hatch)[..., None], 0.25 * picture + 0.75 * ink, picture)
    grid = (np.diff(row, prepend=0) > 0)[:, None] | (np.diff(column, prepend=0) > 0)[None, :]
    picture = np.where(grid[..., None], 0.75 * picture, picture)
    picture = np.where(_rim(~is_gone[..., 0])[..., None], 0.3 * picture + 0.7 * _RIM, picture)
    outline = _edge(row)[:, None] | _edge(column)[None, :]
    return np.where((spread(fates.holders) & outline)[..., None], ink, picture).round().astype(np.uint8)


def _rim(inside: np.ndarray) -> np.ndarray:
    """Those pixels of an area (bool [height, width]) that touch one outside; the picture's own border is none."""
    around = np.pad(inside, 1, mode="edge")
    return inside & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])


def _edge(token: np.ndarray) -> np.ndarray:
    """First and last pixel of each token along one side, bool; `token` is each pixel's token, int."""
    border = np.diff(token) > 0
    return np.concatenate(([True], border)) | np.concatenate((border, [True]))
