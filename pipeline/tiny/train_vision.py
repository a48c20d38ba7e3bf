"""Stage one: the vision tower and the projector learn to write the token code of `pipeline.tiny.features`."""

from __future__ import annotations

import math
import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from pipeline.tiny import features as code
from pipeline.tiny.model import GRID
from pipeline.tiny.pool import Pool


def normalise(frames: torch.Tensor) -> torch.Tensor:
    """[F, H, W, 3] uint8 to [F, 3, H, W] float32 in -1..1, as the checkpoint's preprocessor does."""
    return frames.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def video_tokens(model: LlavaOnevisionForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Pooled, projected tokens of single frames: [F, 3, 96, 96] to [F, 36, 128], by transformers' own code."""
    found = model.model.get_video_features(
        pixels[:, None],
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
    )
    tokens = getattr(found, "pooler_output", found)  # the newline after the frames comes with them
    return tokens.reshape(len(pixels), GRID * GRID + 1, -1)[:, :-1]


def _augment(frames: torch.Tensor) -> torch.Tensor:
    x = normalise(frames)
    noise = 0.04 * torch.rand(len(x), 1, 1, 1, device=x.device)
    return x + noise * torch.randn_like(x)


def _losses(tokens: torch.Tensor, truth: torch.Tensor, matrix: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    read = tokens @ matrix.T / code.GAIN**2
    shown = truth[..., code.NONE.start] < 0.6
    weight = torch.where(truth[..., code.NONE.start] < 1, 1.0, 0.1)[..., None]
    loss = ((tokens - truth @ matrix).pow(2) * weight).sum() / weight.sum() / code.GAIN**2
    scores = {}
    for name, part in (("colour", code.COLOUR), ("shape", code.SHAPE), ("size", code.SIZE)):
        label = truth[..., part][shown].argmax(-1)
        loss = loss + 0.5 * F.cross_entropy(6 * read[..., part][shown], label)
        scores[name] = (read[..., part][shown].argmax(-1) == label).float().mean().item()
    empty = truth[..., code.NONE.start] == 1
    scores["background"] = (read[..., code.NONE.start][empty] > 0.5).float().mean().item()
    where = slice(code.CENTRE.start, code.CENTRE.start + 1)
    scores["centre"] = (read[..., where] - truth[..., where])[shown].abs().mean().item() / 2
    scores["patch"] = (read[..., code.PATCH] - truth[..., code.PATCH]).abs().mean().item()
    return loss, scores


def train_vision(
    model: LlavaOnevisionForConditionalGeneration,
    crowds: Pool,
    held_out: Pool,
    steps: int,
    device: str,
    batch: int = 32,
) -> dict[str, float]:
    """Train tower and projector in place on crowded pictures; returns how well tokens of ordinary frames are read."""
    torch.manual_seed(1)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    params = [*tower.parameters(), *projector.parameters()]
    matrices = [p for p in params if p.dim() == 2 and p is not tower.embeddings.position_embedding.weight]
    others = [p for p in params if all(p is not m for m in matrices)]
    with torch.no_grad():  # positions must be heard from the first step
        tower.embeddings.position_embedding.weight.normal_(std=0.3)
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    frames, truth = torch.from_numpy(crowds.frames), torch.from_numpy(crowds.features)
    matrix = code.code_matrix().to(device)
    order = torch.randperm(len(frames))
    began = time.monotonic()
    model.train()
    for step in range(steps):
        rate = 3e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        index = order[(torch.arange(batch) + step * batch) % len(order)]
        tokens = video_tokens(model, _augment(frames[index].to(device)))
        loss, scores = _losses(tokens, truth[index].to(device).float(), matrix)
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            shown = " ".join(f"{k} {v:.3f}" for k, v in scores.items())
            print(f"vision {step}/{steps} {time.monotonic() - began:.0f}s loss {loss.item():.3f} {shown}", flush=True)
    model.eval()
    frames, truth = torch.from_numpy(held_out.frames), torch.from_numpy(held_out.features)
    results = []
    with torch.inference_mode():
        for index in torch.arange(len(frames)).split(128):
            tokens = video_tokens(model, normalise(frames[index].to(device)))
            results.append(_losses(tokens, truth[index].to(device).float(), matrix)[1])
    return {k: sum(r[k] for r in results) / len(results) for k in results[0]}
