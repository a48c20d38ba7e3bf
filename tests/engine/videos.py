"""Synthetic frames with what pruning looks for: still backgrounds, a moving patch, cuts."""

import numpy as np


def make_video(num_frames: int, height: int = 40, width: int = 56, scenes: int = 2, seed: int = 0) -> np.ndarray:
    """uint8 [T, H, W, 3]: each scene a textured background with one square that moves over it."""
    rng = np.random.default_rng(seed)
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    side = max(2, min(height, width) // 4)
    for scene in np.array_split(np.arange(num_frames), min(scenes, num_frames)):
        background = rng.integers(0, 256, (height, width, 3))
        color = rng.integers(0, 256, 3)
        top, left = rng.integers(0, height - side), rng.integers(0, width - side)
        for frame in scene:
            picture = np.clip(background + rng.integers(-3, 4, background.shape), 0, 255)
            picture[top : top + side, left : left + side] = color
            frames[frame] = picture
            left = (left + 3) % (width - side)
    return frames
