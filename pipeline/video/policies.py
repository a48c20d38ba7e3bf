"""Which frames of a video are looked at: the policies `uniform`, `keyframe`, `fps` and `scene`.

All of them choose among the frames that are on screen at any moment of the range [start_s, end_s), give
`Sampling.frames` of them where there are as many (`fps` also fewer), and never one of them twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from pipeline.video.frame_table import FrameTable
from pipeline.video.sampling import Sampling

_SAME_MOMENT_S = 1e-6  # 7 / 10 and 7 * 0.1 are two numbers; no two frames are so near to each other


def choose_frames(table: FrameTable, sampling: Sampling, scene_starts_s: Sequence[float] | None = None) -> np.ndarray:
    """Indices of `table` (int64, strictly ascending) that the policy chooses; empty where the range shows nothing.

    `scene_starts_s` are the seconds at which scenes begin, ascending: what `find_scenes` gives. The policy
    `scene` needs them and no other looks at them. ValueError for fewer than one frame, a rate that is not
    above 0, an unknown policy, or missing scenes.
    """
    if sampling.frames < 1:
        raise ValueError(f"cannot choose {sampling.frames} frames")
    candidates = frames_in_range(table, sampling)
    times_s = table.times_s[candidates]
    if sampling.policy == "uniform":
        places = evenly(len(candidates), sampling.frames)
    elif sampling.policy == "keyframe":
        places = _near_keyframes(times_s[:, 0], np.flatnonzero(table.is_key[candidates]), sampling.frames)
    elif sampling.policy == "fps":
        ticks = _at_rate(times_s, sampling)
        places = ticks[evenly(len(ticks), sampling.frames)]
    elif sampling.policy == "scene":
        if scene_starts_s is None:
            raise ValueError("the policy scene needs to know where scenes begin")
        places = _over_scenes(times_s, scene_starts_s, sampling.frames)
    else:
        raise ValueError(f"{sampling.policy!r} is no policy of choosing frames")
    return candidates[places]


def frames_in_range(table: FrameTable, sampling: Sampling) -> np.ndarray:
    """Indices (int64, ascending) of the frames on screen at any moment of [start_s, end_s); without bounds, all."""
    begins, ends = table.times_s.T
    inside = np.ones(len(table), dtype=bool)
    if sampling.start_s is not None:
        inside &= ends > sampling.start_s
    if sampling.end_s is not None:
        inside &= begins < sampling.end_s
    return np.flatnonzero(inside)


def evenly(n: int, count: int) -> np.ndarray:
    """The papers' linspace(0, n - 1, count), rounded; each of the n places once where `count` is no less."""
    if n <= count:
        return np.arange(n)
    # A step above 1 keeps the rounded places distinct; a step of exactly 1 is the case above.
    return np.linspace(0, n - 1, count).round().astype(np.int64)


def _near_keyframes(begins_s: np.ndarray, keyframes: np.ndarray, count: int) -> np.ndarray:
    """The uniform places, each moved to the nearest keyframe within half an interval where there is one.

    The interval is the mean time between two uniform picks; a single pick has none and stays where it is.
    Where two picks have the same nearest keyframe (a varying frame rate does that), the nearer one gets it and
    the other takes the nearest that is left. No two places coincide: a pick that is a keyframe takes itself first.
    """
    places = evenly(len(begins_s), count)
    if len(places) in (1, len(begins_s)) or len(keyframes) == 0:
        return places
    wanted_s, keyframes_s = begins_s[places], begins_s[keyframes]
    reach_s = (wanted_s[-1] - wanted_s[0]) / (len(places) - 1) / 2
    after = np.searchsorted(keyframes_s, wanted_s)
    padded = np.concatenate([[-np.inf], keyframes_s, [np.inf]])
    nearest_s = np.minimum(wanted_s - padded[after], padded[after + 1] - wanted_s)
    taken: set[int] = set()
    for pick in np.argsort(nearest_s, kind="stable"):
        if nearest_s[pick] > reach_s:
            break
        left, right = int(after[pick]) - 1, int(after[pick])
        while left in taken:
            left -= 1
        while right in taken:
            right += 1
        before_s = wanted_s[pick] - keyframes_s[left] if left >= 0 else np.inf
        after_s = keyframes_s[right] - wanted_s[pick] if right < len(keyframes) else np.inf
        if min(before_s, after_s) <= reach_s:
            best = left if before_s <= after_s else right
            taken.add(best)
            places[pick] = keyframes[best]
    return np.unique(places)  # sorts; drops a frame only where a hostile file's times differ by less than they can say


def _at_rate(times_s: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Places of the frames on screen at begin + k / fps, k = 0, 1, …; the begin is the range's or the first frame's.

    Asks each frame for its first tick in place of listing ticks: their number is not bounded by the file's size.
    """
    if not sampling.fps > 0:
        raise ValueError(f"cannot choose {sampling.fps} frames a second")
    if len(times_s) == 0:
        return np.arange(0)
    begin_s, end_s = times_s[0, 0], np.inf if sampling.end_s is None else sampling.end_s
    if sampling.start_s is not None:
        begin_s = max(begin_s, sampling.start_s)
    first_tick = np.ceil((times_s[:, 0] - _SAME_MOMENT_S - begin_s) * sampling.fps).clip(min=0)
    tick_s = begin_s + first_tick / sampling.fps
    hit = np.flatnonzero(tick_s < np.minimum(times_s[:, 1], end_s) - _SAME_MOMENT_S)
    return hit if len(hit) else np.arange(1)  # a range shorter than that moment


def _over_scenes(times_s: np.ndarray, starts_s: Sequence[float], count: int) -> np.ndarray:
    """Places spread over the scenes that are in view.

    Every scene gets one frame and the rest go by duration; inside a scene they stand at the middles of equal parts.
    More scenes than frames: the range is cut into `count` parts of equally many frames, and each part gives the
    middle of the scene that fills most of it. So the picks stay spread over the range, and each shows a scene
    that is seen for long rather than one that flashes by.
    """
    n = len(times_s)
    count = min(count, n)
    starts = np.searchsorted(times_s[:, 0], np.asarray(starts_s, np.float64) - _SAME_MOMENT_S)
    edges = np.unique(np.concatenate([[0], starts, [n]]))  # a scene without a frame of its own vanishes
    lengths = np.diff(edges)
    if len(lengths) <= count:
        shares = _share_out(count, _seconds_between(times_s, edges), lengths)
        spans = zip(edges, lengths, shares, strict=False)  # the last edge begins no scene
        parts = [begin + _part_edges(length, share) for begin, length, share in spans]
        return np.concatenate([np.arange(0), *((part[:-1] + part[1:] - 1) // 2 for part in parts)])
    places = []
    for begin, end in itertools.pairwise(_part_edges(n, count)):
        cuts = np.concatenate([[begin], edges[(edges > begin) & (edges < end)], [end]])
        longest = int(np.argmax(_seconds_between(times_s, cuts)))
        places.append((cuts[longest] + cuts[longest + 1] - 1) // 2)
    return np.array(places, np.int64)


def _share_out(count: int, seconds: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """How many of `count` picks each scene gets: one, and the others in turn to where a pick stands for longest."""
    shares = np.ones(len(seconds), np.int64)
    for _ in range(count - len(seconds)):
        shares[np.argmax(np.where(shares < frames, seconds / shares, -1.0))] += 1
    return shares


def _part_edges(n: int, parts: int) -> np.ndarray:
    """The `parts` + 1 edges of equal parts of n places; none is empty as long as parts <= n."""
    return np.arange(parts + 1) * n // parts


def _seconds_between(times_s: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How long the frames between each two neighbours of `edges` are on screen together."""
    return times_s[edges[1:] - 1, 1] - times_s[edges[:-1], 0]
