"""Draws the procedural world at any resolution, and roughens pictures the way video codecs do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.tiny.world import COLOURS, SIZES, Clip, Scene, WorldObject


def background(texture: int, width: int, height: int) -> np.ndarray:
    """The static background of a scene: [height, width, 3] uint8, muted so that objects stand out."""
    rng = np.random.default_rng([texture, 7])
    base = rng.uniform(45, 150) + rng.uniform(-28, 28, 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width, y / height
    angle = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(-25, 25)
    shade = slope * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
    if rng.random() < 0.5:  # stripes
        waves = rng.uniform(3, 9)
        angle = rng.uniform(0, np.pi)
        shade = shade + rng.uniform(3, 9) * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y))
    cells = int(rng.integers(4, 10))
    grid = rng.normal(0, rng.uniform(4, 11), (cells + 1, cells + 1)).astype(np.float32)
    gx, gy = x * cells, y * cells
    ix, iy = np.minimum(gx.astype(int), cells - 1), np.minimum(gy.astype(int), cells - 1)
    fx, fy = gx - ix, gy - iy
    noise = (grid[iy, ix] * (1 - fx) + grid[iy, ix + 1] * fx) * (1 - fy) + (
        grid[iy + 1, ix] * (1 - fx) + grid[iy + 1, ix + 1] * fx
    ) * fy
    picture = base[None, None, :] + (shade + noise)[:, :, None]
    return np.clip(picture + 0.5, 10, 190).astype(np.uint8)


def coverage(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float, edge: float) -> np.ndarray:
    """How much of each pixel a shape covers, 0..1. `dx`, `dy`, `radius` and `edge` (a pixel) in one isotropic unit."""
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.88 * radius
    elif shape == "triangle":
        distance = np.maximum(dy - 0.8 * radius, 0.87 * np.abs(dx) - 0.5 * dy - 0.5 * radius)
    else:  # cross
        arm, reach = 0.3 * radius, 1.02 * radius
        across = np.maximum(np.abs(dx) - reach, np.abs(dy) - arm)
        upright = np.maximum(np.abs(dy) - reach, np.abs(dx) - arm)
        distance = np.minimum(across, upright)
    return np.clip(0.5 - distance / edge, 0.0, 1.0)


def stamp(picture: np.ndarray, thing: WorldObject, slot: float, aspect: float) -> None:
    """Draw one object into `picture` ([H, W, 3] uint8) in place. `aspect` is the video's width / height.

    Shapes keep their proportions in the video's own pixels, also when `picture` is a squashed version of it.
    """
    height, width = picture.shape[:2]
    unit_x, unit_y = np.sqrt(aspect), 1 / np.sqrt(aspect)  # frame width and height in units of sqrt(area)
    cx, cy = thing.position(slot)
    radius = SIZES[thing.size] / 2
    x0, x1 = (cx - 1.2 * radius / unit_x) * width - 1, (cx + 1.2 * radius / unit_x) * width + 2
    y0, y1 = (cy - 1.2 * radius / unit_y) * height - 1, (cy + 1.2 * radius / unit_y) * height + 2
    left, right = max(int(x0), 0), min(int(x1) + 1, width)
    top, bottom = max(int(y0), 0), min(int(y1) + 1, height)
    if left >= right or top >= bottom:
        return
    dx = ((np.arange(left, right, dtype=np.float32) + 0.5) / width - cx) * unit_x
    dy = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / height - cy) * unit_y
    edge = 1.0 / np.sqrt(width * height)
    alpha = coverage(thing.shape, dx[None, :], dy[:, None], radius, edge)[:, :, None]
    colour = np.array(COLOURS[thing.colour], np.float32)
    region = picture[top:bottom, left:right].astype(np.float32)
    picture[top:bottom, left:right] = region + alpha * (colour - region) + 0.5


def draw_scene(scene: Scene, slot: float, canvas: np.ndarray, aspect: float) -> np.ndarray:
    """One frame of a scene on a copy of its background `canvas`: [H, W, 3] uint8."""
    picture = canvas.copy()
    for thing in scene.objects:
        if thing.visible(slot):
            stamp(picture, thing, slot, aspect)
    return picture


def draw_clip(clip: Clip, slots: Iterable[float], width: int, height: int) -> Iterator[np.ndarray]:
    """Frames of a clip at ascending (fractional) slots, one by one: [height, width, 3] uint8."""
    shown, canvas = None, None
    for slot in slots:
        scene, inside = clip.locate(slot)
        if scene is not shown:
            shown, canvas = scene, background(scene.texture, width, height)
        yield draw_scene(scene, inside, canvas, clip.width / clip.height)


def roughen(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Codec-like damage for training: blur, colour bleeding, block noise, brightness. [T, H, W, 3] uint8 in and out."""
    x = frames.astype(np.float32)
    if rng.random() < 0.6:  # blur of a random strength
        s = rng.uniform(0.05, 0.3)
        x = (1 - 2 * s) * x + s * (np.roll(x, 1, 1) + np.roll(x, -1, 1))
        x = (1 - 2 * s) * x + s * (np.roll(x, 1, 2) + np.roll(x, -1, 2))
    if rng.random() < 0.5:  # chroma at half resolution
        luma = x.mean(-1, keepdims=True)
        chroma = x - luma
        t, h, w, _ = chroma.shape
        small = chroma.reshape(t, h // 2, 2, w // 2, 2, 3).mean((2, 4))
        x = luma + small.repeat(2, 1).repeat(2, 2)
    x = x * rng.uniform(0.93, 1.07) + rng.uniform(-6, 6)
    if rng.random() < 0.7:
        t, h, w, _ = x.shape
        blocks = rng.normal(0, rng.uniform(0, 3), (t, h // 4, w // 4, 3)).astype(np.float32)
        x = x + blocks.repeat(4, 1).repeat(4, 2) + rng.normal(0, rng.uniform(0, 4), x.shape).astype(np.float32)
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)
