"""A video after the vision tower: what a request may bring in place of its frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class EncodedVideo:
    """One video's tokens, made once by `VideoLLM.encode` for any number of later calls.

    `tokens` is [N, hidden], row-major in time; `frames` the number of frames T that were shown, and
    `size` their height and width in pixels, on which the token grid of some models depends.
    `attention` is [N] float32 or None: the share of attention that each token's place received in the
    vision tower's last layer. `vision_ms` is this video's share of the time that encoding took. The
    tensors may be moved to another device or type: an answer brings them back.
    """

    tokens: torch.Tensor
    frames: int
    attention: torch.Tensor | None = None
    vision_ms: float = 0.0
    size: tuple[int, int] | None = None
