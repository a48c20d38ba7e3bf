"""What a manifest asks for: exact counts, and a sample of its videos with the questions about them."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.manifest import open_manifest
from pipeline.manifest_rows import PlannedRow, read_columns
from pipeline.staging import Asking, planned_rows

_MOST_QUESTIONS = 256  # of one sampled video are kept; they stand for the others


@dataclass(frozen=True)
class Question:
    """What of a manifest row decides its cost; None: as the job says."""

    prompt: str
    retention: float | None
    max_new_tokens: int | None


@dataclass
class SampledVideo:
    """A video, range and frame count that is decoded once, and the questions about it: `rows` in all."""

    uri: str
    start_s: float | None
    end_s: float | None
    frames: int | None
    rows: int = 0
    questions: list[Question] = field(default_factory=list)


@dataclass(frozen=True)
class Census:
    """Counts over the whole manifest: `refused` of its `rows` need no work, the others show `videos`.

    `sample` are videos taken at random, all of them where there are few; `refusals` count error codes.
    """

    rows: int
    refused: int
    videos: int
    refusals: dict[str, int]
    sample: list[SampledVideo]


def take_census(config: JobConfig, most: int) -> Census:
    """Read the whole manifest once, keeping `most` videos and 8 bytes a row.

    The sample is the videos whose hashes are lowest: the same for the same manifest, whatever its order, and
    every question about such a video is seen, wherever it stands. Raises UserError for a manifest that is missing,
    empty or unreadable, ClusterError where storage is unreachable.
    """
    lowest: dict[int, SampledVideo] = {}
    heap: list[int] = []  # their hashes, negated: the largest on top
    videos, refusals, rows = array("Q"), Counter[str](), 0
    with TemporaryDirectory(prefix="hieravid-plan-") as scratch:
        manifest = open_manifest(config.manifest, Path(scratch))
        used = read_columns(config.task, manifest.rows.schema)
        asking = Asking(config.task, config.generation.prompt, "")
        for batch in manifest.rows.batches():
            for row in planned_rows(batch, used, manifest.folder, asking):
                rows += 1
                if row.error is not None:
                    refusals[row.error.code] += 1
                    continue
                place = _hash(row)
                videos.append(place)
                if place in lowest:
                    _add(lowest[place], row)
                elif len(lowest) < most or place < -heap[0]:
                    lowest[place] = SampledVideo(row.uri or "", row.start_s, row.end_s, row.frames)
                    _add(lowest[place], row)
                    heapq.heappush(heap, -place)
                    if len(lowest) > most:
                        del lowest[-heapq.heappop(heap)]
    if not rows:
        raise UserError(f"the manifest {config.manifest} is empty")
    distinct = len(np.unique(np.frombuffer(videos, np.uint64))) if videos else 0
    sample = [lowest[place] for place in sorted(lowest)]
    return Census(rows, rows - len(videos), distinct, dict(refusals.most_common()), sample)


def _hash(row: PlannedRow) -> int:
    return int.from_bytes(hashlib.sha256(row.group("").encode()).digest()[:8], "big")


def _add(video: SampledVideo, row: PlannedRow) -> None:
    video.rows += 1
    if len(video.questions) < _MOST_QUESTIONS:
        video.questions.append(Question(row.prompt or "", row.retention, row.max_new_tokens))
