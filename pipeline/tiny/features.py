"""The code that a visual token speaks: what it shows, written into 128 numbers by a fixed linear map.

The vision tower and projector are trained to write this code for every pooled token; the language model is trained on
the code itself, computed from the truth of endless drawn-on-paper scenes, before it ever meets the tower's own output.
So both learn at once and neither waits for the other.
"""

from __future__ import annotations

import numpy as np
import torch

from pipeline.tiny.draw import background
from pipeline.tiny.model import GRID, WIDTH
from pipeline.tiny.world import COLOURS, SHAPES, SIZES, Scene, WorldObject

CELLS = GRID * GRID
COLOUR_INDEX = {name: i for i, name in enumerate(COLOURS)}
SHAPE_INDEX = {name: i for i, name in enumerate(SHAPES)}
SIZE_INDEX = {name: i for i, name in enumerate(SIZES)}
SHOWN = 0.08  # share of a cell's area from which the cell is said to show the object
FULL = 0.30  # share from which it shows it fully

NONE = slice(0, 1)
COLOUR = slice(1, 1 + len(COLOURS))
SHAPE = slice(COLOUR.stop, COLOUR.stop + len(SHAPES))
SIZE = slice(SHAPE.stop, SHAPE.stop + len(SIZES))
CENTRE = slice(SIZE.stop, SIZE.stop + 10)
PATCH = slice(CENTRE.stop, CENTRE.stop + 3)
LENGTH = PATCH.stop
GAIN = 4.0
PATCH_GAIN = 2.5


def code_matrix() -> torch.Tensor:
    """[LENGTH, 128] with orthogonal rows of length GAIN: how features become a token, and (transposed) back."""
    generator = torch.Generator().manual_seed(20)
    return torch.linalg.qr(torch.randn(WIDTH, LENGTH, generator=generator))[0].T.contiguous() * GAIN


def centre_waves(x: np.ndarray) -> np.ndarray:
    """A coordinate in 0..1 as five numbers, coarse to fine: [...] to [..., 5]."""
    turn = 2 * np.pi * x
    return np.stack([2 * x - 1, np.sin(turn), np.cos(turn), np.sin(2 * turn), np.cos(2 * turn)], -1)


def cells_under(thing: WorldObject, slots: np.ndarray, aspect: float) -> np.ndarray:
    """How much of each cell the object's bounding box covers while visible: [S, 36] float32 in 0..1."""
    places = np.array([thing.position(s) for s in slots])
    seen = np.array([thing.visible(s) for s in slots])
    radius = SIZES[thing.size] / 2
    edges = np.arange(GRID + 1) / GRID

    def overlap(middle: np.ndarray, half: float) -> np.ndarray:
        near = np.maximum(edges[:-1], middle[:, None] - half)
        return np.clip(np.minimum(edges[1:], middle[:, None] + half) - near, 0, None) * GRID

    across, down = overlap(places[:, 0], radius / np.sqrt(aspect)), overlap(places[:, 1], radius * np.sqrt(aspect))
    return ((down[:, :, None] * across[:, None, :]).reshape(len(slots), CELLS) * seen[:, None]).astype(np.float32)


def scene_features(
    scene: Scene, slots: np.ndarray, aspect: float, patch: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The truth of every token: features [S, 36, LENGTH] float32 and the object shown [S, 36] int8 (-1: none).

    `patch` [S, 36, 3] is each token's mean colour in -1..1 where a picture exists; else it is worked out.
    """
    out = np.zeros((len(slots), CELLS, LENGTH), np.float32)
    owner = np.full((len(slots), CELLS), -1, np.int8)
    best = np.full((len(slots), CELLS), SHOWN, np.float32)
    if patch is None:
        small = background(scene.texture, 4 * GRID, 4 * GRID).reshape(GRID, 4, GRID, 4, 3).mean((1, 3))
        mean = np.repeat(small.reshape(1, CELLS, 3), len(slots), 0)
    for index, thing in enumerate(scene.objects):
        share = cells_under(thing, slots, aspect)
        if patch is None:
            mean = mean + 0.7 * share[:, :, None] * (
                np.array(list(COLOURS.values())[COLOUR_INDEX[thing.colour]]) - mean
            )
        mine = share > best
        owner[mine], best = index, np.maximum(best, share)
        strength = np.minimum(share / FULL, 1.0)[mine]
        code = np.zeros(LENGTH, np.float32)
        code[COLOUR.start + COLOUR_INDEX[thing.colour]] = 1
        code[SHAPE.start + SHAPE_INDEX[thing.shape]] = 1
        code[SIZE.start + SIZE_INDEX[thing.size]] = 1
        places = np.array([thing.position(s) for s in slots])
        waves = np.concatenate([centre_waves(places[:, 0]), centre_waves(places[:, 1])], -1)
        rows = np.broadcast_to(code, (len(slots), CELLS, LENGTH)).copy()
        rows[:, :, CENTRE] = waves[:, None]
        out[mine] = rows[mine] * strength[:, None]
    out[:, :, NONE.start] = 1 - out[:, :, COLOUR].sum(-1)
    out[:, :, PATCH] = PATCH_GAIN * (patch if patch is not None else mean / 127.5 - 1)
    return out, owner
