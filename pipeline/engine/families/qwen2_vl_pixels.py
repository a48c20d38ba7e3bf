"""Frames to the patches that Qwen2-VL's vision tower reads: two frames a step, at a resolution of their own.

Wang et al. 2024 (arXiv 2409.12191), section 2.1, "naive dynamic resolution"; the numbers are those
of transformers' processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.engine.errors import ModelError
from pipeline.engine.preprocess import FramePreprocessor, read_processor_config, three_numbers
from pipeline.frame_size import MAX_ASPECT_RATIO, TokenBudget

# Tokens of a frame that the published models were shown in videos: the limits of transformers' video processor.
_MIN_VIDEO_TOKENS = 128
_MAX_VIDEO_TOKENS = 768

# Settings of the processor that have one value here; a folder may name it or leave it out.
_ONLY = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "cap_pixels_per_frame": False}
_SIDES = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


@dataclass(frozen=True)
class PatchPreprocessor:
    """Resize within a pixel budget, normalise, and cut into patches; sizes are in pixels.

    Frames are scaled as TokenBudget says, from `min_pixels` to `max_pixels`. A token covers
    `patch_size` · `merge_size` pixels a side of `temporal_patch_size` frames.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float = 1 / 255

    @classmethod
    def from_folder(cls, folder: Path) -> PatchPreprocessor:
        """Read a checkpoint folder's processor settings; ModelError where they ask for more than this.

        The published folders hold an image processor alone, which allows 16,384 tokens an image. It
        serves videos, too, but a frame gets at most the 768 tokens that videos had in training.
        """
        found = read_processor_config(folder)
        if found is None:
            raise ModelError(f"{folder}: no preprocessor_config.json")
        config, source = found
        for key, only in _ONLY.items():
            if config.get(key) not in (only, None):
                raise ModelError(f"{source}: {key} {config[key]} is not supported, only {only}")
        sides = {key: _whole_number(config.get(key, default), key, source) for key, default in _SIDES.items()}
        size = config.get("size") or {}
        if not isinstance(size, dict):
            raise ModelError(f"{source}: size must name shortest_edge and longest_edge, found {size}")
        side = sides["patch_size"] * sides["merge_size"]
        least = config.get("min_pixels") or size.get("shortest_edge") or _MIN_VIDEO_TOKENS * side**2
        most = config.get("max_pixels") or size.get("longest_edge") or _MAX_VIDEO_TOKENS * side**2
        least = _whole_number(least, "min_pixels", source)
        most = min(_whole_number(most, "max_pixels", source), _MAX_VIDEO_TOKENS * side**2)
        try:
            TokenBudget(side, least, most)
        except ValueError as error:
            raise ModelError(f"{source}: {error}") from error
        return cls(
            **sides,
            min_pixels=least,
            max_pixels=most,
            mean=three_numbers(config, "image_mean", source),
            std=three_numbers(config, "image_std", source),
            rescale_factor=float(config.get("rescale_factor", 1 / 255)),
        )

    @property
    def token_side(self) -> int:
        """Pixels a side of one video token."""
        return self.patch_size * self.merge_size

    @property
    def frame_size(self) -> TokenBudget:
        """The rule for the size of a frame."""
        return TokenBudget(self.token_side, self.min_pixels, self.max_pixels)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens for frames of this size; ValueError for a frame that is far too narrow."""
        height, width = self.frame_size.of(height, width)
        return height // self.token_side, width // self.token_side

    def largest_grid(self) -> tuple[int, int]:
        """Rows and columns of the most tokens that a frame can have, as near to a square as they go."""
        for tokens in range(self.max_pixels // self.token_side**2, 0, -1):
            rows = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
            if tokens <= MAX_ASPECT_RATIO * rows**2:
                return rows, tokens // rows
        raise AssertionError("a single token is a square")

    def __call__(self, frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 RGB [T, H, W, 3] to `dtype` [T', rows, columns, merge_size², 3 · temporal · patch_size²].

        T' steps of the temporal patch size, the last one filled up with the last frame. Patches of one
        token are neighbours, and each is laid out as channel, frame, row, column.
        """
        if missing := -frames.shape[0] % self.temporal_patch_size:
            frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
        rows, columns = self.token_grid(frames.shape[1], frames.shape[2])
        resize = FramePreprocessor(
            rows * self.token_side, columns * self.token_side, self.mean, self.std, self.rescale_factor
        )
        pixels = resize(frames, dtype)
        cut = pixels.unflatten(3, (columns, self.merge_size, self.patch_size))
        cut = cut.unflatten(2, (rows, self.merge_size, self.patch_size))
        cut = cut.unflatten(0, (-1, self.temporal_patch_size))
        # [T', temporal, channel, rows, merge, patch, columns, merge, patch]: every patch becomes one run of memory
        cut = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
        return cut.flatten(5).flatten(3, 4)


def _whole_number(value: object, key: str, source: Path) -> int:
    if not isinstance(value, int) or value < 1:
        raise ModelError(f"{source}: {key} must be a whole number of at least 1, found {value}")
    return value
