"""Does the built-in world tell good pruning from bad? `python -m pipeline.tiny.separation --clips 200`.

Asks the same questions of the same clips unpruned, with random tokens, with an oracle that keeps the tokens under
objects, and with HieraVid, at several retentions. The world is useful if random selection at 0.1 loses ten points
against the unpruned model and the oracle wins ten back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from pipeline.engine import VideoLLM
from pipeline.evaluate.clips import ClipRange
from pipeline.evaluate.compare import compare
from pipeline.evaluate.variants import UNPRUNED, Variant
from pipeline.evaluate.workers import Setting
from pipeline.tiny.world import SEED_RANGES

METHODS = ("random", "oracle", "hieravid")
RETENTIONS = (0.5, 0.3, 0.2, 0.1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--split", choices=sorted(SEED_RANGES), default="validation")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--cache", type=Path, help="folder of videos to reuse and add to")
    parser.add_argument("--json", type=Path, help="also write the table here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        entries = compare(
            Setting(args.model, "auto", args.cache or Path(scratch), Path(scratch) / "cells"),
            VideoLLM.load(args.model),
            [Variant(method, method) for method in METHODS],
            ["mean"],
            RETENTIONS,
            ClipRange(args.split, args.first, args.clips),
            captions=0,
            workers=1,
            report=lambda step: print(f"{step.done}/{step.total} {step.name}", flush=True),
        )
    table: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry.scores:
            name = "unpruned" if entry.variant.method == UNPRUNED else entry.variant.label
            table.setdefault(name, {})[str(entry.retention)] = entry.scores.total.accuracy
    for name, shares in table.items():
        for retention, share in shares.items():
            print(f"{name:10} {retention}  {share:.3f}")
    if args.json:
        args.json.write_text(json.dumps({"clips": args.clips, "split": args.split, "accuracy": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
