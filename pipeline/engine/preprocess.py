"""Frames of any size to the pixel values that a vision tower was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.checkpoint import read_json
from pipeline.engine.errors import ModelError
from pipeline.resize import resize_frames

_BICUBIC = 3  # Pillow's number for the filter, as preprocessor_config.json writes it


@dataclass(frozen=True)
class FramePreprocessor:
    """Resize, rescale and normalise; the numbers are those of the checkpoint's own processor."""

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float

    @classmethod
    def from_folder(cls, folder: Path, default: FramePreprocessor | None = None) -> FramePreprocessor:
        """Read a checkpoint folder's processor settings; ModelError where they ask for more than this.

        A folder without settings is given `default`, and refused where there is none.
        """
        found = read_processor_config(folder)
        if found is None and default is not None:
            return default
        if found is None:
            raise ModelError(f"{folder}: no preprocessor_config.json")
        config, source = found
        size = config.get("size", {})
        if not isinstance(size, dict) or not {"height", "width"} <= size.keys():
            raise ModelError(f"{source}: size must name height and width, found {size}")
        if config.get("resample", _BICUBIC) != _BICUBIC:
            raise ModelError(f"{source}: only bicubic resampling (3) is supported, found {config['resample']}")
        if config.get("do_center_crop"):
            raise ModelError(f"{source}: do_center_crop is not supported")
        for step in ("do_resize", "do_rescale", "do_normalize"):
            if not config.get(step, True):
                raise ModelError(f"{source}: {step} false is not supported")
        return cls(
            height=int(size["height"]),
            width=int(size["width"]),
            mean=three_numbers(config, "image_mean", source),
            std=three_numbers(config, "image_std", source),
            rescale_factor=float(config.get("rescale_factor", 1 / 255)),
        )

    def check_side(self, side: int, folder: Path) -> None:
        """Raise ModelError unless it makes square frames of `side` pixels, as the folder's vision tower takes them."""
        if (self.height, self.width) != (side, side):
            raise ModelError(
                f"{folder}: the processor makes {self.height}x{self.width} frames, the vision tower takes {side}x{side}"
            )

    def __call__(self, frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 RGB [T, H, W, 3] to normalised `dtype` [T, 3, height, width] on the same device."""
        levels = resize_frames(frames.permute(0, 3, 1, 2), self.height, self.width)
        # (level * rescale - mean) / std as one multiply-add over all values
        scale = torch.tensor([self.rescale_factor / s for s in self.std], device=frames.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=frames.device)
        pixels = torch.addcmul(shift[:, None, None], levels.to(torch.float32), scale[:, None, None])
        return pixels.to(dtype).contiguous()


def read_processor_config(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The settings for video frames: a video processor's own where the folder has one; None without any."""
    for name, key in (
        ("video_preprocessor_config.json", None),
        ("processor_config.json", "video_processor"),
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        path = folder / name
        if not path.is_file():
            continue
        config = read_json(path)
        config = config.get(key) if key else config
        if config:
            return config, path
    return None


def three_numbers(config: dict[str, Any], key: str, source: Path) -> tuple[float, float, float]:
    """One value a colour channel; a missing key is an error, since models differ in it."""
    values = config.get(key)
    if not isinstance(values, list) or len(values) != 3:
        raise ModelError(f"{source}: {key} must be three numbers, found {values}")
    return (float(values[0]), float(values[1]), float(values[2]))
