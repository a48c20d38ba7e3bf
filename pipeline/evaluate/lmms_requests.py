"""What lmms-eval asks, with the frames that it asks about: videos are decoded ahead of the model, each one once."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import RowError
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Asked:
    """One lmms-eval instance: its place among the requests of a call, and what it asks about which file.

    `wanted` is the generation kwargs (a dict) or the continuation to score (a text).
    """

    place: int
    context: str
    wanted: Any
    video: str


@dataclass
class AskedVideos:
    """Reads instances and decodes their videos, `frames` of each, `batch_size` videos at a time.

    `failures` gets one line for each instance whose video could not be decoded.
    """

    frames: int
    batch_size: int
    failures: list[str] = field(default_factory=list)

    def batches(self, instances: Sequence[Any], task_dict: dict[str, Any]) -> Iterator[list[tuple[Asked, np.ndarray]]]:
        """What the instances ask, with uint8 frames [T, H, W, 3]; the next batch is decoded while one is answered.

        Neighbours that ask about one file share its frames. Instances whose video cannot be decoded are left
        out. `task_dict[task][split][doc_id]` is the document of an instance. ValueError as of `read_instance`.
        """
        asked = (read_instance(place, instance, task_dict) for place, instance in enumerate(instances))
        videos = (list(group) for _, group in groupby(asked, key=lambda item: item.video))
        waiting: deque[list[tuple[list[Asked], Future[np.ndarray]]]] = deque()
        with ThreadPoolExecutor(self.batch_size) as pool:
            while batch := list(islice(videos, self.batch_size)):
                waiting.append([(group, pool.submit(self._decode, group[0].video)) for group in batch])
                if len(waiting) > 1:
                    yield from self._finished(waiting.popleft())
            for batch in waiting:
                yield from self._finished(batch)

    def _decode(self, video: str) -> np.ndarray:
        return decode_frames(Path(video), Sampling(self.frames, "uniform")).frames

    def _finished(
        self, batch: Iterable[tuple[list[Asked], Future[np.ndarray]]]
    ) -> Iterator[list[tuple[Asked, np.ndarray]]]:
        """The batch once its frames are there; nothing if none of its videos could be decoded."""
        decoded: list[tuple[Asked, np.ndarray]] = []
        for group, frames in batch:
            try:
                decoded += [(item, frames.result()) for item in group]
            except RowError as error:
                self.failures += [f"{item.video}: {error}" for item in group]
                _log.warning("%s: %s; %d questions stay without an answer", group[0].video, error, len(group))
        if decoded:
            yield decoded


def read_instance(place: int, instance: Any, task_dict: dict[str, Any]) -> Asked:
    """What an instance asks. ValueError unless its task shows exactly one video file.

    Its `args` are (context, generation kwargs or continuation, doc_to_visual, doc id, task, split).
    """
    if len(instance.args) != 6:
        raise ValueError(f"a request with {len(instance.args)} arguments instead of 6 shows no video")
    context, wanted, doc_to_visual, doc_id, task, split = instance.args
    doc = task_dict[task][split][doc_id]
    visuals = doc_to_visual(doc) or []
    if len(visuals) != 1 or not isinstance(visuals[0], str):
        kinds = ", ".join(type(visual).__name__ for visual in visuals) or "nothing"
        raise ValueError(f"{task}, document {doc_id}: a task must show the path of one video, this one shows {kinds}")
    return Asked(place, context, str(wanted(doc)) if callable(wanted) else wanted, visuals[0])
