"""Rendered training scenes with the truth of every visual token, for the vision tower and the last fine-tuning."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.tiny.draw import background, draw_scene, roughen
from pipeline.tiny.features import CELLS, scene_features
from pipeline.tiny.model import GRID, IMAGE_SIZE
from pipeline.tiny.world import COLOURS, FRAME_SIZES, SHAPES, SIZES, Scene, WorldObject, apart, make_clip


@dataclass
class Pool:
    """Scenes and their frames. Scene i owns rows starts[i] : starts[i] + scenes[i].slots of the arrays.

    `frames` [F, 96, 96, 3] uint8; `features` [F, 36, LENGTH] float16, see `scene_features`.
    """

    scenes: list[Scene]
    starts: np.ndarray
    frames: np.ndarray
    features: np.ndarray


def crowded_scene(rng: np.random.Generator) -> Scene:
    """One still moment with up to seven objects, some cut by the edge: more to learn per picture than a clip offers."""
    objects: list[WorldObject] = []
    for _ in range(int(rng.integers(1, 40))):
        x, y = (float(v) for v in rng.uniform(0.02, 0.98, 2))
        names = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(list(SIZES), p=[0.7, 0.3])))
        candidate = WorldObject(*names, 0, 0, (x, y), (x, y), 0.0, 0.0)
        if len(objects) < 7 and all(apart(candidate, other) for other in objects):
            objects.append(candidate)
    return Scene(1, int(rng.integers(0, 2**31)), tuple(objects))


def _picture(scene: Scene, slots: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Damaged pictures [S, 96, 96, 3] uint8 of a scene and the truth of their tokens [S, 36, LENGTH] float16."""
    side = IMAGE_SIZE // GRID
    width, height = FRAME_SIZES[int(rng.integers(0, len(FRAME_SIZES)))]
    canvas = background(scene.texture, IMAGE_SIZE, IMAGE_SIZE)
    pictures = np.stack([draw_scene(scene, s, canvas, width / height) for s in slots])
    pictures = roughen(pictures, rng)
    patch = pictures.reshape(-1, GRID, side, GRID, side, 3).mean((2, 4)).reshape(-1, CELLS, 3) / 127.5 - 1
    return pictures, scene_features(scene, slots, width / height, patch)[0].astype(np.float16)


def _crowd(seeds: range) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    found = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 5])
        found.append(_picture(crowded_scene(rng), np.zeros(1), rng))
    return [], np.concatenate([f for f, _ in found]), np.concatenate([t for _, t in found])


def _render(seeds: range) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    scenes, found = [], []
    for seed in seeds:
        for scene in make_clip(seed).scenes:
            rng = np.random.default_rng([scene.texture, seed])
            scenes.append(scene)
            found.append(_picture(scene, np.arange(scene.slots) + rng.uniform(-0.2, 0.2), rng))
    return scenes, np.concatenate([f for f, _ in found]), np.concatenate([t for _, t in found])


def _spread(draw: Callable[[range], tuple[list[Scene], np.ndarray, np.ndarray]], seeds: range, workers: int) -> Pool:
    chunks = [seeds[i : i + 50] for i in range(0, len(seeds), 50)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        parts = pool.map(draw, chunks, chunksize=1)
    scenes = [scene for part in parts for scene in part[0]]
    frames, features = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    return Pool(scenes, _starts(scenes), frames, features)


def make_pool(seeds: range, workers: int) -> Pool:
    """Render the scenes of the clips of `seeds`."""
    return _spread(_render, seeds, workers)


def make_crowds(seeds: range, workers: int) -> Pool:
    """A crowded still picture for each seed; the pool has no scenes to compose clips from."""
    return _spread(_crowd, seeds, workers)


def _starts(scenes: list[Scene]) -> np.ndarray:
    return np.cumsum([0, *(s.slots for s in scenes)])[:-1].astype(np.int64)


def cached_pool(seeds: range, workers: int, folder: Path) -> Pool:
    """The pool of `seeds`, rendered once and kept in `folder`; the scenes follow from the seeds."""
    path = folder / f"pool-{seeds.start}-{seeds.stop}.npz"
    if not path.exists():
        pool = make_pool(seeds, workers)
        np.savez(path, frames=pool.frames, features=pool.features)
        return pool
    scenes = [scene for seed in seeds for scene in make_clip(seed).scenes]
    with np.load(path) as stored:
        return Pool(scenes, _starts(scenes), stored["frames"], stored["features"])
