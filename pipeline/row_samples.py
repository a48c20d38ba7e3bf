"""Of which rows of a job a picture is kept for its report: what the model was allowed to see, beside its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import ClusterError, UserError
from pipeline.storage import absolute, join

if TYPE_CHECKING:
    from pipeline.engine import Answer
    from pipeline.run_record import Plan, Shard

_ALL = 2**64


@dataclass(frozen=True)
class RowSamples:
    """A `share` of the rows, the same videos and prompts in every run, so that the report can set two side by side.

    `folders` says where the pictures of a shard's rows go, by the shard's name.
    """

    share: float
    folders: dict[str, str]

    @classmethod
    def among(cls, tasks: Iterable[tuple[Plan, Shard]], number: int) -> RowSamples:
        """About `number` of the rows of these shards."""
        tasks = list(tasks)
        rows = sum(shard.rows - shard.refused for _, shard in tasks)
        share = min(1.0, number / rows) if rows else 0.0
        return cls(share, {shard.name: absolute(join(plan.folder, "samples")) for plan, shard in tasks})

    def holds(self, video_id: str, prompt: str) -> bool:
        """Whether the row is one of them."""
        digest = hashlib.sha256(f"{video_id}\0{prompt}".encode("utf-8", "replace")).digest()
        return int.from_bytes(digest[:8]) < self.share * _ALL

    def keep(self, shard: str, item_id: str, video_id: str, prompt: str, frames: np.ndarray, answer: Answer) -> None:
        """Write the picture of a row whose request was traced. Where that fails the row goes on without."""
        from pipeline.report.samples import write_sample  # late: draws with what few rows need

        with suppress(UserError, ClusterError):
            write_sample(self.folders[shard], item_id, video_id, prompt, frames, answer)
