"""The size at which a model looks at frames, as a rule over their own size.

Whoever decodes a video scales by the rule that the model's preprocessing follows, so that frames travel at
that size and the preprocessing finds nothing left to scale. Plain data: it crosses processes as JSON, and
needs neither torch nor numpy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MAX_ASPECT_RATIO = 200  # of the longer side to the shorter one: what Qwen2-VL's processor accepts


@dataclass(frozen=True)
class FixedSize:
    """Every frame is scaled to `height` x `width` pixels, whatever its shape. ValueError below 1."""

    height: int
    width: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_whole(self)

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which the model sees frames of this size."""
        return self.height, self.width


@dataclass(frozen=True)
class TokenBudget:
    """A frame keeps its size, rounded to whole tokens, where that has `min_pixels` to `max_pixels`.

    A larger or a smaller one is scaled into this range, its shape kept as well as whole tokens of
    `token_side` pixels a side allow (Wang et al. 2024, arXiv 2409.12191, section 2.1). ValueError where
    no number of tokens fits.
    """

    token_side: int
    min_pixels: int
    max_pixels: int

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_whole(self)
        if self.max_pixels < max(self.min_pixels, self.token_side**2):
            raise ValueError(
                f"frames of at least {self.min_pixels} and at most {self.max_pixels} pixels are impossible "
                f"in tokens of {self.token_side**2}"
            )

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in pixels at which the model sees frames of this size, at most `max_pixels`.

        A size that this returned is returned unchanged. ValueError for a frame that is far too narrow.
        """
        size = (height, width)
        seen: list[tuple[int, int]] = []
        # One step is the published rule. Under usual budgets its result stays as it is in a second step. Where
        # least and most are close, whole tokens may lie above the one or below the other whichever way they are
        # rounded, and the steps go round in a circle: then the circle's smallest size stands for all of it.
        while size not in seen:
            seen.append(size)
            size = self._step(*size)
        circle = seen[seen.index(size) :]
        # Rounding can make a narrow frame narrower still: what has become a size of the model passes.
        if max(height, width) > MAX_ASPECT_RATIO * min(height, width) and (height, width) not in circle:
            raise ValueError(f"frames of {height}x{width} pixels are narrower than 1:{MAX_ASPECT_RATIO}")
        return min(circle, key=lambda size: (size[0] * size[1], size))

    def _step(self, height: int, width: int) -> tuple[int, int]:
        """The rule of transformers' processors."""
        side = self.token_side
        # round() is the processor's own: a half goes to the even neighbour
        rows, columns = round(height / side), round(width / side)
        if rows * columns * side**2 > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            rows, columns = (max(1, math.floor(pixels / shrink / side)) for pixels in (height, width))
        elif rows * columns * side**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            rows, columns = (math.ceil(pixels * grow / side) for pixels in (height, width))
        return rows * side, columns * side


FrameSize = FixedSize | TokenBudget

_KINDS: dict[str, type[FixedSize] | type[TokenBudget]] = {"fixed": FixedSize, "token_budget": TokenBudget}


def to_json(size: FrameSize) -> dict[str, Any]:
    """The rule as an object of JSON: its kind and its numbers."""
    kind = next(kind for kind, rule in _KINDS.items() if type(size) is rule)
    return {"kind": kind, **asdict(size)}


def from_json(text: Mapping[str, Any]) -> FrameSize:
    """The rule that `to_json` wrote; ValueError for anything else."""
    numbers = dict(text)
    kind = numbers.pop("kind", None)
    rule = _KINDS.get(kind) if isinstance(kind, str) else None
    if rule is None or numbers.keys() != {field.name for field in fields(rule)}:
        raise ValueError(f"no frame size: {dict(text)}")
    return rule(**numbers)


def _check_whole(size: FrameSize) -> None:
    for name, number in asdict(size).items():
        if type(number) is not int or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, found {number!r}")
