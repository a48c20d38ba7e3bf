"""Trains the built-in model: `python -m pipeline.tiny.train --folder out/tiny`.

Three steps, each kept in the folder and skipped when it is there: render a pool of training scenes, train the vision
tower on it, train the language model. Interrupt it at will and call it again. Writes a checkpoint in the Hugging Face
layout to `<folder>/checkpoint`. Needs torch, transformers and numpy only.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from pipeline.prompts import with_options
from pipeline.tiny.language import CAPTION_PROMPTS, all_questions, caption, vary
from pipeline.tiny.model import build_config, build_model, build_tokenizer, save_checkpoint
from pipeline.tiny.pool import Pool, cached_pool, make_crowds, make_pool
from pipeline.tiny.samples import PoolClips
from pipeline.tiny.train_language import Recipe, train_language
from pipeline.tiny.train_vision import normalise, train_vision, video_tokens
from pipeline.tiny.world import TRAIN_SEEDS, make_clip

TOKENIZER_CLIPS = 2000
HELD_OUT_CLIPS = 60


def corpus() -> list[str]:
    """Texts that hold every word the world can say, in both spellings."""
    texts = [*CAPTION_PROMPTS, "user", "assistant", "system"]
    for seed in TRAIN_SEEDS[:TOKENIZER_CLIPS]:
        scenes, rng = make_clip(seed).scenes, np.random.default_rng(seed)
        texts.append(caption(scenes))
        for question in all_questions(scenes, rng):
            texts += [vary(with_options(question.text, question.options), rng), question.answer]
    return texts


def kept_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of this work folder, built at the first call: ids must not move under weights that exist."""
    if not path.exists():
        build_tokenizer(corpus()).save_pretrained(path)
    return PreTrainedTokenizerFast.from_pretrained(path)


def tower_tokens(model: LlavaOnevisionForConditionalGeneration, pool: Pool, device: str, path: Path) -> np.ndarray:
    """The trained tower's own tokens for every frame of the pool: [F, 36, 128] float16, computed once."""
    if path.exists():
        return np.load(path)
    with torch.inference_mode():
        parts = [
            video_tokens(model, normalise(part.to(device))).half().cpu()
            for part in torch.from_numpy(pool.frames).split(128)
        ]
    tokens = torch.cat(parts).numpy()
    np.save(path, tokens)
    return tokens


def trained_vision(
    model: LlavaOnevisionForConditionalGeneration, args: argparse.Namespace
) -> tuple[dict[str, float], PoolClips]:
    """The vision tower's scores and a pool of clips as it reads them; trains the tower unless the folder holds it."""
    path = args.folder / "vision.pt"
    parts = {"vision_tower": model.model.vision_tower, "multi_modal_projector": model.model.multi_modal_projector}
    if path.exists():
        stored = torch.load(path, map_location=args.device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(stored[name])
        scores = stored["scores"]
    else:
        crowds = make_crowds(TRAIN_SEEDS[: args.crowds], args.workers)
        held_out = make_pool(TRAIN_SEEDS[-HELD_OUT_CLIPS:], args.workers)
        scores = train_vision(model, crowds, held_out, args.vision_steps, args.device)
        torch.save({**{n: p.state_dict() for n, p in parts.items()}, "scores": scores}, path)
    pool = cached_pool(TRAIN_SEEDS[: args.pool_clips], args.workers, args.folder)
    tokens = tower_tokens(model, pool, args.device, args.folder / "tokens.npy")
    return scores, PoolClips(pool, tokens)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/tiny"), help="work folder, kept between calls")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that draw scenes")
    parser.add_argument("--pool-clips", type=int, default=2500)
    parser.add_argument("--crowds", type=int, default=20000, help="pictures for the vision tower")
    parser.add_argument("--vision-steps", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=Recipe.minutes, help="time for the language model")
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--only-drawn", action="store_true", help="start the language model before the tower is ready")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)

    tokenizer = kept_tokenizer(args.folder / "tokenizer")
    model = build_model(build_config(tokenizer)).to(args.device)
    recipe = Recipe(minutes=args.minutes, batch=args.batch)
    vision_scores, pool = ({}, None) if args.only_drawn else trained_vision(model, args)

    def save() -> None:
        save_checkpoint(args.folder / "checkpoint", model, tokenizer)

    scores = train_language(model, tokenizer, pool, recipe, args.folder, args.device, save)
    report = {
        "vision": vision_scores,
        "language": scores,
        "recipe": asdict(recipe),
        "pool_clips": args.pool_clips,
        "vision_steps": args.vision_steps,
        "device": args.device,
        "torch": torch.__version__,
    }
    (args.folder / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
