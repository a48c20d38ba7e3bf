"""Where the scenes of a video begin, found from a few small pictures of it.

Pictures that stand some way apart are compared with their neighbours: keyframes, which cost little to decode, or,
where there are hardly any, frames half a second apart. Between two that differ lies a cut, and the sizes of the
packets tell where: the first picture after a cut cannot be predicted, so its packet is about as large as a keyframe's.
Scenes shorter than the pictures are apart can go unseen, and steady motion over a changing view counts as cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from pipeline.video.frame_table import FrameTable
from pipeline.video.policies import evenly, frames_in_range
from pipeline.video.sampling import Sampling

MOST_PICTURES = 256  # 7.5 ms of CPU time for a keyframe of 1280 x 720
MOST_DECODED = 3000  # frames that may be decoded to look at those between keyframes
STEP_S = 0.5  # between pictures that are not keyframes
# Mean difference in grey levels (0..255). In 100 clips of the built-in world: all 130 cuts found, and 2 that are none.
CUT_LEVELS = 10.0
_SPIKE = 0.4  # of a keyframe's packet: from here on a packet tells of a new picture
_SIDE = 4  # blocks along each side of a picture
_QUANTILES = 16


def find_scenes(
    table: FrameTable, sampling: Sampling, read: Callable[[np.ndarray], Iterator[np.ndarray]]
) -> list[float]:
    """The seconds at which the scenes of the range begin, strictly ascending; the first is its first frame's time.

    `read` takes ascending indices of `table` and gives their pictures in that order: RGB uint8 [h, w, 3], all of one
    size of at least 4 x 4; 32 x 32 is enough, however wide the video. It is called at most once, for at most 256 of
    them, and what it raises passes through. Empty where the range shows nothing.
    """
    candidates = frames_in_range(table, sampling)
    if len(candidates) == 0:
        return []
    first = int(candidates[0])
    looked_at = _frames_to_look_at(table, candidates, sampling.frames)
    cuts: list[int] = []
    if len(looked_at) > 1:
        signatures = (_signature(picture) for picture in read(looked_at))
        pairs = zip(itertools.pairwise(looked_at.tolist()), itertools.pairwise(signatures), strict=True)
        for (before, after), (one, other) in pairs:
            if np.abs(one - other).mean() > CUT_LEVELS:
                cuts.append(_cut_between(table, before, after))
    # The first picture may lie before the range, and so may the cut behind it.
    return table.times_s[[first, *(cut for cut in cuts if cut > first)], 0].tolist()


def _frames_to_look_at(table: FrameTable, candidates: np.ndarray, wanted: int) -> np.ndarray:
    """Ascending indices: of keyframes, or of frames at even steps where nearly all is going to be decoded anyway.

    That is so where the frames wanted outnumber the keyframes.
    """
    first, last = int(candidates[0]), int(candidates[-1])
    keyframes = np.flatnonzero(table.is_key)
    in_force = max(int(np.searchsorted(keyframes, first, side="right")) - 1, 0)  # the one that `first` is decoded from
    keyframes = keyframes[in_force : np.searchsorted(keyframes, last, side="right")]
    if len(keyframes) > wanted or len(candidates) > MOST_DECODED:
        return keyframes[evenly(len(keyframes), MOST_PICTURES)]
    duration_s = table.times_s[last, 1] - table.times_s[first, 0]
    count = min(MOST_PICTURES, 1 + int(np.ceil(min(duration_s / STEP_S, MOST_PICTURES))))
    return candidates[evenly(len(candidates), count)]


def _signature(picture: np.ndarray) -> np.ndarray:
    """What a picture [h, w, 3] looks like, float32 [32 x 3]: 16 quantiles of each colour and its means in 4 x 4 blocks.

    The mean difference of two quantile functions is the earth mover's distance of the two histograms: unlike
    a difference of bins, it is small where all the light changes a little.
    """
    height, width, _ = picture.shape
    colours = np.sort(picture.reshape(-1, 3), axis=0)
    middles = (2 * np.arange(_QUANTILES) + 1) * len(colours) // (2 * _QUANTILES)
    rows, columns = np.arange(_SIDE + 1) * height // _SIDE, np.arange(_SIDE + 1) * width // _SIDE
    sums = np.add.reduceat(np.add.reduceat(picture, rows[:-1], axis=0, dtype=np.float32), columns[:-1], axis=1)
    blocks = sums / np.outer(np.diff(rows), np.diff(columns))[:, :, None]
    return np.concatenate([colours[middles], blocks.reshape(-1, 3)]).astype(np.float32)


def _cut_between(table: FrameTable, before: int, after: int) -> int:
    """The frame in (before, after] that begins a scene: that of a large packet, or else a keyframe put there for it."""
    keyframes = np.flatnonzero(table.is_key[: after + 1])
    keyframe = int(keyframes[-1]) if len(keyframes) else -1
    if table.size is not None and keyframe >= 0:
        size = np.where(table.is_key, -1, table.size)[before + 1 : after + 1]
        if size.max() >= _SPIKE * table.size[keyframe]:
            return before + 1 + int(np.argmax(size))
    return keyframe if keyframe > before else after
