"""How many requests of a stream are taken in ahead of their turn: frames are large."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Several

import torch

from pipeline.engine.admission import check_same_video
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.failures import Failed
from pipeline.engine.sequence import Sequence

_MAX_WAITING = 64
_MAX_BYTES = 2**30  # of frames


class Window:
    """Takes sequences from a source as long as few enough wait already."""

    def __init__(self, source: Iterator[Sequence | Failed | None], prefill_tokens: int) -> None:
        """What fills two prefill packs of `prefill_tokens` is enough, and so is a gigabyte of frames."""
        self._source = source
        self._max_tokens = 2 * prefill_tokens
        self._pulls = 0
        self.is_open = True  # the source may have more

    def pull(self, waiting: Several[Sequence]) -> list[Sequence | Failed]:
        """What has come, refusals included, until the source has nothing just now or enough is `waiting`."""
        arrived: list[Sequence | Failed] = []
        line = list(waiting)
        self._pulls += 1
        while self.is_open and len(arrived) < _MAX_WAITING and self._has_room(line):
            try:
                with torch.inference_mode(False):  # the caller's code runs here, and may make tensors of its own
                    item = next(self._source)
            except StopIteration:
                self.is_open = False
                break
            if item is None:
                break
            if isinstance(item, Sequence):
                item = self._checked(item, line)
            if isinstance(item, Sequence):
                item.arrival = self._pulls
                line.append(item)
            arrived.append(item)
        return arrived

    def _has_room(self, line: list[Sequence]) -> bool:
        if len(line) >= _MAX_WAITING or sum(s.packed_tokens for s in line) >= self._max_tokens:
            return False
        frames = {s.video: s.request.frames for s in line}.values()
        return sum(video.nbytes for video in frames if not isinstance(video, EncodedVideo)) < _MAX_BYTES

    def _checked(self, sequence: Sequence, line: list[Sequence]) -> Sequence | Failed:
        try:
            for other in line:
                check_same_video(other, sequence)
        except ValueError as error:
            return Failed(sequence.number, error, is_refused=True)
        return sequence
