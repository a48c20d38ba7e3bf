"""What a job asks of a video: which frames, of which part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Policy = Literal["keyframe", "uniform", "fps", "scene"]
Backend = Literal["auto", "decord", "pyav"]


@dataclass(frozen=True)
class Sampling:
    """How frames are chosen from the range [start_s, end_s) of a video; None is its begin or its end.

    `frames` is how many there are at most, `fps` how many a second under the policy of that name.
    """

    frames: int
    policy: Policy = "keyframe"
    fps: float = 1.0
    start_s: float | None = None
    end_s: float | None = None
