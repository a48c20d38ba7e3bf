"""Does the built-in world tell good pruning from bad? `python -m pipeline.tiny.separation --clips 200`.

Asks the same questions of the same clips unpruned, with random tokens, with an oracle that keeps the tokens under
objects, and with HieraVid, at several retentions. The world is useful if random selection at 0.1 loses ten points
against the unpruned model and the oracle wins ten back.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.engine import Request, VideoLLM
from pipeline.prompts import with_options
from pipeline.tiny.clips import clip_questions, write_video
from pipeline.tiny.features import scene_features
from pipeline.tiny.world import SEED_RANGES, SLOTS, Clip, make_clip
from pipeline.video import decode_frames
from pruning import Pruner, PruningConfig, VideoTokens
from pruning.peers.input_only import InputOnly


class Oracle(InputOnly):
    """Keeps the tokens under objects first, the rest at random. Knows the clip by the request's seed."""

    name = "oracle"

    def choose(self, video: VideoTokens, count: int) -> torch.Tensor:
        """All object tokens, or a random `count` of them; then random others."""
        clip = make_clip(video.seed)
        aspect = clip.width / clip.height
        owners = [scene_features(s, np.arange(s.slots), aspect)[1] for s in clip.scenes]
        shown = torch.from_numpy(np.concatenate(owners).reshape(-1) >= 0).double()
        noise = torch.rand(len(shown), generator=torch.Generator().manual_seed(video.seed), dtype=torch.double)
        return (shown + noise).argsort(descending=True)[:count].sort().values


def exact_match(
    llm: VideoLLM, clips: Sequence[tuple[Clip, np.ndarray]], pruning: PruningConfig | Pruner, retention: float
) -> float:
    """Share of the clips' questions answered exactly right at a retention."""
    requests, truth = [], []
    for clip, frames in clips:
        for question in clip_questions(clip):
            prompt = with_options(question.text, question.options)
            requests.append(
                Request(
                    frames,
                    prompt,
                    max_new_tokens=4,
                    video_key=str(clip.seed),
                    seed=clip.seed,
                    retention=retention,
                )
            )
            truth.append(question.answer)
    answers = llm.answer(requests, pruning)
    return float(np.mean([a.text == t for a, t in zip(answers, truth, strict=True)]))


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
    llm = VideoLLM.load(args.model)
    clips = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.cache or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in SEED_RANGES[args.split][args.first : args.first + args.clips]:
            clip, path = make_clip(seed), folder / f"{seed}.mp4"
            if not path.exists():
                write_video(clip, path)
            clips.append((clip, decode_frames(path, SLOTS).frames))
    table = {"unpruned": {"1.0": exact_match(llm, clips, PruningConfig(method="none"), 1.0)}}
    print(f"{'unpruned':10} 1.0  {table['unpruned']['1.0']:.3f}", flush=True)
    for name, method in (
        ("random", PruningConfig(method="random")),
        ("oracle", Oracle()),
        ("hieravid", PruningConfig(method="hieravid")),
    ):
        table[name] = {}
        for retention in (0.5, 0.3, 0.2, 0.1):
            table[name][str(retention)] = share = exact_match(llm, clips, method, retention)
            print(f"{name:10} {retention}  {share:.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"clips": len(clips), "split": args.split, "accuracy": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
