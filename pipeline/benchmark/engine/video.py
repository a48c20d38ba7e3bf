"""Synthetic video: scenes that HieraVid cuts where they change, and nowhere else."""

from __future__ import annotations

import itertools

import numpy as np

_CELLS = 12  # patches of colour along a scene's longer side
# Levels by which a scene's colour stands off the middle, cells off their scene, and each frame's cells off those.
_SCENE, _CELL, _FRAME = 90, 60, 30


def make_video(frames: int, segments: int, size: tuple[int, int], seed: int = 0, step: int = 1) -> np.ndarray:
    """uint8 RGB [T, height, width, 3] of `segments` scenes, as even in length as they come.

    A scene is a field of coloured cells about a colour opposite to the last scene's; its cells flicker
    from frame to frame. `size` is (height, width). Scenes begin at multiples of `step`, the frames that a
    model takes together. Raises ValueError where that leaves a scene without frames.
    """
    steps = frames // step
    if not 1 <= segments <= steps:
        raise ValueError(f"{frames} frames, {step} a step, cannot show {segments} segments")
    rng = np.random.default_rng(seed)
    height, width = size
    side = -(-max(size) // _CELLS)
    rows, columns = -(-height // side), -(-width // side)
    video = np.empty((frames, height, width, 3), dtype=np.uint8)
    direction = rng.normal(size=3)
    cuts = [step * round(steps * scene / segments) for scene in range(segments)]
    for start, end in itertools.pairwise([*cuts, frames]):
        direction = -direction / np.linalg.norm(direction) + 0.2 * rng.normal(size=3)
        cells = 128 + _SCENE * direction + rng.normal(scale=_CELL, size=(rows, columns, 3))
        for frame in range(start, end):
            picture = np.clip(cells + rng.normal(scale=_FRAME, size=cells.shape), 0, 255).astype(np.uint8)
            video[frame] = picture.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]
    return video
