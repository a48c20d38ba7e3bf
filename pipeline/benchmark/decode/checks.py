"""What the measured rows say about the aims of reading video, in a line each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.benchmark.check import Check
from pipeline.benchmark.decode.run import ClipRows, Row
from pipeline.benchmark.decode.systems import ISOLATED

_OTHERS = ("decord", "pyav", "torchcodec")
_LONG_S = 300.0  # from this length on keyframes alone must be much cheaper
_EXACT_S = 1e-3  # decord keeps times as float32, and Matroska in milliseconds


def check_clips(clips: Sequence[ClipRows]) -> list[Check]:
    """The aims that these clips can judge."""
    return [*_check_cpu(clips), *_check_keyframes(clips), *_check_times(clips)]


def _check_cpu(clips: Sequence[ClipRows]) -> list[Check]:
    """Exact frames: our processor time over the least of the others', clip by clip."""
    ratios: dict[str, float] = {}
    isolated: dict[str, float] = {}
    for clip in clips:
        rows = _by_case(clip)
        best = min((rows[name, "uniform"].cpu_s for name in _OTHERS if (name, "uniform") in rows), default=None)
        ours = rows.get(("ours", "uniform"))
        if ours is None or best is None:
            continue
        ratios[clip.clip] = ours.cpu_s / best
        if (ISOLATED, "uniform") in rows:
            isolated[clip.clip] = rows[ISOLATED, "uniform"].cpu_s / best
    checks: list[Check] = []
    for name, values in (("ours", ratios), (ISOLATED, isolated)):
        if values:
            mean = math.exp(sum(map(math.log, values.values())) / len(values))
            worst = max(values, key=lambda clip: values[clip])
            what = f"exact frames, CPU time of {name} / the best of the others"
            checks.append(Check(f"{what}, geometric mean of {len(values)} clips", mean, 1.1, True))
            checks.append(Check(f"{what}, worst ({worst})", values[worst], 1.3, True))
    return checks


def _check_keyframes(clips: Sequence[ClipRows]) -> list[Check]:
    """Keyframes of long clips that have one in every interval: how much less than decord's exact frames they cost."""
    checks: list[Check] = []
    for clip in clips:
        rows = _by_case(clip)
        ours, decord = rows.get(("ours", "keyframe")), rows.get(("decord", "uniform"))
        timeline = clip.timeline
        if ours is None or decord is None or timeline is None:
            continue
        if timeline.duration_s >= _LONG_S and timeline.max_gap_s <= timeline.interval_s:
            name = f"keyframes, CPU time of decord's exact frames / ours ({clip.clip})"
            checks.append(Check(name, decord.cpu_s / ours.cpu_s, 10.0, False))
    return checks


def _check_times(clips: Sequence[ClipRows]) -> list[Check]:
    """How far frames lie from their wanted times."""
    off: dict[str, float] = {}
    share: dict[str, float] = {}
    for clip in clips:
        for (system, policy), row in _by_case(clip).items():
            if not system.startswith("ours") or row.max_time_error_s is None:
                continue
            if policy == "uniform":
                off[clip.clip] = max(off.get(clip.clip, 0.0), row.max_time_error_s)
            elif clip.timeline is not None and clip.timeline.interval_s > 0:
                here = row.max_time_error_s / clip.timeline.interval_s
                share[clip.clip] = max(share.get(clip.clip, 0.0), here)
    checks: list[Check] = []
    if off:
        worst = max(off, key=lambda clip: off[clip])
        name = f"exact frames, furthest of ours from its time ({worst})"
        checks.append(Check(name, off[worst] * 1e3, _EXACT_S * 1e3, True, " ms"))
    if share:
        worst = max(share, key=lambda clip: share[clip])
        name = f"keyframes, furthest of ours from its time, of an interval ({worst})"
        checks.append(Check(name, share[worst], 0.5, True, "%"))
    return checks


def _by_case(clip: ClipRows) -> Mapping[tuple[str, str], Row]:
    return {(row.system, row.policy): row for row in clip.rows}
