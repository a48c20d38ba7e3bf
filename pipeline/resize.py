"""Bicubic resizing of uint8 frames with Pillow's numbers, on the CPU and on an accelerator.

Pillow resizes in two passes and rounds to whole levels after each. Models saw their training
frames through it, so an answer should not depend on where the resize runs: a frame that the process
which decodes it has scaled is the frame that the engine would have made of the original.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

_CUBIC_A = -0.5  # Pillow's and OpenCV-with-antialias' choice; torch without antialias uses -0.75
_FIXED_POINT = 2.0**22  # Pillow keeps its weights as integers of 22 fractional bits


def fit_frame(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize one uint8 frame [H, W, 3] of the host to [height, width, 3]; one of that size is returned as it is.

    It is the engine's resize on the CPU, bit for bit. It takes the threads that torch has: a process of one
    core starts with OMP_NUM_THREADS=1.
    """
    if frame.shape[:2] == (height, width):
        return frame
    # torch takes no backward strides and warns of read-only memory: only such a frame is copied
    levels = torch.from_numpy(np.require(frame, requirements=("C", "W")))
    # A frame's channels stay side by side in memory, which torch's kernel reads three to five times as fast.
    resized = resize_frames(levels.permute(2, 0, 1)[None], height, width)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def resize_frames(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize uint8 frames [T, 3, H, W] to uint8 [T, 3, height, width], antialiased bicubic."""
    if frames.shape[2:] == (height, width):
        return frames
    # torch's own uint8 kernel is up to a hundred times faster than matrix products, but exists for
    # the CPU only; its weights are coarser, which moves less than 1 % of the values by one level.
    one_pass = _resize_pass_cpu if frames.device.type == "cpu" else _resize_pass_matrix
    dims = (2, 3) if _is_vertical_first(frames.shape[2], frames.shape[3], height, width) else (3, 2)
    for dim in dims:
        frames = one_pass(frames, dim, height if dim == 2 else width)
    return frames


def _is_vertical_first(in_height: int, in_width: int, height: int, width: int) -> bool:
    """Whether Pillow (13 and later) starts with the rows: where the height shrinks by far more.

    The order shows in the numbers, because levels are rounded and clipped between the passes.
    """
    return height < in_height and in_height - height > 2 * (in_width - width)


def _resize_pass_cpu(frames: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Resize one of the two image dimensions with torch's uint8 kernel."""
    if frames.shape[dim] == size:
        return frames
    target = (size, frames.shape[3]) if dim == 2 else (frames.shape[2], size)
    return F.interpolate(frames, size=target, mode="bicubic", antialias=True)


def _resize_pass_matrix(frames: torch.Tensor, dim: int, size: int) -> torch.Tensor:
    """Resize one of the two image dimensions as a product with the matrix of Pillow's weights."""
    in_size = frames.shape[dim]
    if in_size == size:
        return frames
    weights = bicubic_weights(in_size, size, frames.device)
    levels = frames.to(torch.float32)
    levels = weights @ levels if dim == 2 else levels @ weights.T
    return levels.add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def bicubic_weights(in_size: int, out_size: int, device: torch.device) -> torch.Tensor:
    """Pillow's antialiased bicubic filter as a float32 matrix [out_size, in_size]."""
    scale = in_size / out_size
    stretch = max(scale, 1.0)  # when shrinking, the filter widens to cover all source pixels
    center = (torch.arange(out_size, dtype=torch.float64)[:, None] + 0.5) * scale
    source = torch.arange(in_size, dtype=torch.float64)[None, :]
    first = (center - 2.0 * stretch + 0.5).trunc().clamp(min=0)
    end = (center + 2.0 * stretch + 0.5).trunc().clamp(max=in_size)
    distance = ((source + 0.5 - center) / stretch).abs()
    near = ((_CUBIC_A + 2) * distance - (_CUBIC_A + 3)) * distance**2 + 1
    far = _CUBIC_A * (((distance - 5) * distance + 8) * distance - 4)
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where((source >= first) & (source < end), weights, 0.0)
    weights /= weights.sum(dim=1, keepdim=True)
    return ((weights * _FIXED_POINT).round() / _FIXED_POINT).to(device, torch.float32)
