"""What choosing frames at keyframes costs in accuracy: `python -m pipeline.tiny.policies UNIFORM KEYFRAME`.

Compares two QA jobs over the same questions about the procedural clips, pair by pair, and what decoding took.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.evaluate.bootstrap import Estimate, ratio
from pipeline.tiny.scores import read_rows


@dataclass(frozen=True)
class Comparison:
    """Accuracies of two jobs over the same questions; `difference` is the second's minus the first's."""

    questions: int
    clips: int
    first: float
    second: float
    difference: Estimate
    first_decode_cpu_ms: float  # a clip, mean
    second_decode_cpu_ms: float


def compare(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> Comparison:
    """Compare result rows of the same questions, in the same order. ValueError where they are not the same.

    An error row is a wrong answer. The interval of the difference is over clips, whose questions hang together.
    """
    asked = [[(row["video_id"], row["prompt"], row["reference"]) for row in rows] for rows in (first, second)]
    if asked[0] != asked[1] or not asked[0]:
        raise ValueError("the two jobs did not answer the same questions")
    hits = [np.array([row["answer"] == row["reference"] for row in rows]) for rows in (first, second)]
    clips: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(first):
        clips[row["video_id"]].append(place)
    gained = np.array([int(hits[1][places].sum()) - int(hits[0][places].sum()) for places in clips.values()])
    counts = np.array([len(places) for places in clips.values()])
    decode = [sum(row["decode_cpu_ms"] or 0.0 for row in rows) / len(clips) for rows in (first, second)]
    return Comparison(
        len(first), len(clips), fmean(hits[0]), fmean(hits[1]), ratio(gained, counts), decode[0], decode[1]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="output folder of the job with exact frames")
    parser.add_argument("second", type=Path, help="output folder of the other job")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    found = compare(read_rows(args.first), read_rows(args.second))
    print(f"{found.questions:,} questions about {found.clips:,} clips")
    for folder, accuracy, cpu_ms in (
        (args.first, found.first, found.first_decode_cpu_ms),
        (args.second, found.second, found.second_decode_cpu_ms),
    ):
        print(f"{folder.name:>10}  {accuracy:.2%} answered exactly, {cpu_ms:.1f} ms CPU a clip for decoding")
    low, high = found.difference.low * 100, found.difference.high * 100
    print(f"difference  {found.difference.value * 100:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f} over clips")
    if args.json:
        args.json.write_text(json.dumps(asdict(found), indent=2) + "\n")


if __name__ == "__main__":
    main()
