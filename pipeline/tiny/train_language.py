"""Stage two: the language model, on kept visual tokens, packed questions, captions and dense targets.

Made to read sparse token sets as large models do: a random share of the tokens is dropped at the input, and more of
them at random inside the decoder, with no regard to what they show. Early training may instead keep the tokens that
show objects, which makes its sequences six times shorter; that share falls to zero (see `schedule`).
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from pipeline.tiny.features import CELLS
from pipeline.tiny.model import WIDTH
from pipeline.tiny.samples import DENSE, IGNORE, Batch, Mix, PoolClips, Samples, Speller

DROP_LAYERS = (2, 4, 6)


@dataclass(frozen=True)
class Recipe:
    """What training does. Progress runs on time spent, so that the schedule ends when the time does."""

    minutes: float = 90.0
    batch: int = 16
    rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.02
    dense_weight: float = 0.5
    ema: float = 0.995
    seed: int = 11
    workers: int = 1


def schedule(progress: float, has_pool: bool) -> Mix:
    """Focused, then ever more neutral batches; drawn features first, the tower's own at the end."""
    focus = min(1.0, max(0.0, (0.75 - progress) / 0.4))
    real = min(0.9, max(0.0, (progress - 0.5) / 0.3)) if has_pool else 0.0
    return Mix(focus=focus, low=0.08 if progress > 0.5 else 0.2, high=1.0 if progress > 0.6 else 0.5, real=real)


class LanguageTrainer(nn.Module):
    """The decoder with heads for the dense targets (dropped after training) and a forward that can drop tokens."""

    def __init__(self, model: LlavaOnevisionForConditionalGeneration, prefix: list[int]) -> None:
        """`prefix` are the ids in front of the video."""
        super().__init__()
        self.decoder = model.model.language_model
        self.newline = model.model.image_newline
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, size) for name, size in DENSE.items()})
        self.register_buffer("prefix", torch.tensor(prefix), persistent=False)

    def forward(self, batch: Batch, drops: dict[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits [B, L, V] at the text, the last hidden states of the video tokens that are left, and which they are.

        `drops[layer]` [B, K'] are the tokens (by rank among those left) that go on from that layer's MLP.
        """
        size, kept = batch.index.shape
        head, total = len(self.prefix), batch.frames * CELLS
        embed = self.decoder.embed_tokens
        x = torch.cat(
            [
                embed(self.prefix).expand(size, -1, -1),
                batch.tokens,
                self.newline.expand(size, 1, -1),
                embed(batch.text),
            ],
            1,
        )
        spot = torch.arange(head, device=x.device).expand(size, -1)
        end = torch.full((size, 1), head + total, device=x.device)
        position = torch.cat([spot, head + batch.index, end, end + 1 + batch.offset], 1)
        branch = batch.branch.masked_fill(batch.branch == 0, -1)  # 0 is what all may see, padding must not be
        group = torch.cat([torch.zeros(size, head + kept + 1, dtype=torch.long, device=x.device), branch], 1)
        cos, sin = self.decoder.rotary_emb(x, position)
        mask = _mask(group)
        alive = torch.arange(kept, device=x.device).expand(size, -1)
        for number, layer in enumerate(self.decoder.layers):
            x = x + _attention(layer, x, cos, sin, mask)
            if number in drops:
                keep = drops[number]
                alive = alive.gather(1, keep)
                after = torch.arange(head + kept, x.shape[1], device=x.device).expand(size, -1)
                rows = torch.cat([spot, head + keep, after], 1)
                x = x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))
                cos, sin = (t.gather(1, rows[..., None].expand(-1, -1, t.shape[-1])) for t in (cos, sin))
                group = group.gather(1, rows)
                mask = _mask(group)
                kept = keep.shape[1]
            x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
        x = _norm(self.decoder.norm, x)
        return F.linear(x[:, head + kept + 1 :], embed.weight), x[:, head : head + kept], alive


def _norm(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _mask(group: torch.Tensor) -> torch.Tensor:
    """[B, 1, S, S], True where a query may look: back, at shared tokens and its own branch; padding at itself."""
    length = group.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=group.device).tril()
    same = group[:, :, None] == group[:, None, :]
    shared = (group == 0)[:, None, :]
    return (causal & (same | shared))[:, None]


def _attention(
    layer: nn.Module, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    attn = layer.self_attn
    h = _norm(layer.input_layernorm, x)
    size, length, _ = h.shape
    q, k, v = (
        p(h).view(size, length, -1, attn.head_dim).transpose(1, 2) for p in (attn.q_proj, attn.k_proj, attn.v_proj)
    )
    cos, sin = cos[:, None], sin[:, None]
    q, k = (t * cos + _turn(t) * sin for t in (q, k))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attn.o_proj(out.transpose(1, 2).reshape(size, length, -1))


def _turn(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


def random_drops(batch: Batch, generator: torch.Generator) -> dict[int, torch.Tensor]:
    """For half of the batches: at each of DROP_LAYERS a random share of 25..100 % of the tokens left stays."""
    if torch.rand((), generator=generator) < 0.5:
        return {}
    size, left = batch.index.shape
    drops = {}
    for layer in DROP_LAYERS:
        count = max(2, round(left * (0.25 + 0.75 * torch.rand((), generator=generator).item())))
        order = torch.rand(size, left, generator=generator).argsort(1)[:, :count]
        drops[layer] = order.sort(1).values.to(batch.index.device)
        left = count
    return drops


def losses(
    trainer: LanguageTrainer, batch: Batch, drops: dict[int, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of the text (weighted mean), loss of the dense targets, and which picks are right (see `score`)."""
    logits, hidden, alive = trainer(batch, drops)
    learnt = batch.target != IGNORE
    picked = logits[learnt]
    weight = batch.weight[learnt]
    text = (F.cross_entropy(picked, batch.target[learnt], reduction="none") * weight).sum() / weight.sum()
    labels = batch.dense.gather(1, alive[..., None].expand(-1, -1, batch.dense.shape[-1]))
    shows = (labels[..., 3] > 0).float()
    dense = torch.zeros((), device=logits.device)
    result = {"right": picked.argmax(-1) == batch.target[learnt], "where": learnt}
    for column, (name, head) in enumerate(trainer.heads.items()):
        known = labels[..., column] != IGNORE
        if known.any():
            said, truth = head(hidden[known]), labels[..., column][known]
            importance = 0.1 + 0.9 * shows[known]
            each = F.cross_entropy(said, truth, reduction="none")
            dense = dense + (each * importance).sum() / importance.sum()
            result[f"token {name}"] = (said.argmax(-1) == truth)[shows[known] > 0]
    return text, dense, result


def score(batch: Batch, result: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Teacher-forced hits (0 or 1) by question kind, on caption words, and of dense targets on object tokens."""
    right = torch.zeros_like(batch.target, dtype=torch.bool)
    right[result["where"]] = result["right"]
    out: dict[str, list[float]] = defaultdict(list)
    for name, hits in result.items():
        if name.startswith("token "):
            out[name] += hits.float().tolist()
    for row, kinds in enumerate(batch.kinds):
        for number, kind in enumerate(kinds, 1):
            mine = (batch.branch[row] == number) & (batch.weight[row] > 0.2)
            hits = right[row][mine].float()
            out["caption word" if kind == "caption" else kind] += hits.tolist()
            if kind != "caption":
                out["all questions"] += hits.tolist()
    return out


@torch.no_grad()
def validate(trainer: LanguageTrainer, batches: list[Batch]) -> dict[str, float]:
    """Teacher-forced accuracy by kind over prepared batches."""
    trainer.eval()
    found: dict[str, list[float]] = defaultdict(list)
    for batch in batches:
        for kind, hits in score(batch, losses(trainer, batch, {})[2]).items():
            found[kind] += hits
    trainer.train()
    return {kind: sum(hits) / len(hits) for kind, hits in sorted(found.items())}


def train_language(
    model: LlavaOnevisionForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pool: PoolClips | None,
    recipe: Recipe,
    folder: Path,
    device: str,
    save: Callable[[], None],
) -> dict[str, float]:
    """Train the decoder in place until `recipe.minutes` are spent (counting earlier runs); returns its scores.

    State goes to `folder`/language.pt every 250 steps; a later call goes on from there. `save` is called whenever the
    model holds the averaged weights and may be exported.
    """
    torch.manual_seed(recipe.seed)
    progress = multiprocessing.get_context("fork").Value("d", 0.0)
    prefix = Speller(tokenizer).prefix
    trainer = LanguageTrainer(model, prefix).to(device)
    matrices = [p for p in trainer.decoder.layers.parameters() if p.dim() == 2]
    known = {id(p) for p in matrices}
    others = [p for p in trainer.parameters() if id(p) not in known]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=0.0, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
    ]
    params = [*matrices, *others]
    average = [p.detach().clone() for p in params]
    state: dict[str, Any] = {"step": 0, "spent": 0.0}
    path = folder / "language.pt"
    if path.exists():
        stored = torch.load(path, map_location=device, weights_only=True)
        trainer.load_state_dict(stored["trainer"])
        for optimiser, saved_state in zip(optimisers, stored["optimisers"], strict=True):
            optimiser.load_state_dict(saved_state)
        average = [t.to(device) for t in stored["average"]]
        state = stored["state"]
        progress.value = state["spent"] / (60 * recipe.minutes)
    samples = Samples(
        tokenizer, lambda: schedule(progress.value, pool is not None), recipe.batch, recipe.seed + state["step"], pool
    )
    tests = Samples(tokenizer, Mix, 2 * recipe.batch, 999, pool)
    full = Mix(real=1.0 if pool else 0.0)
    held = [tests.make(np.random.default_rng([999, i]), full, frames=16, kept=1.0).to(device) for i in range(3)]
    loader = iter(
        DataLoader(
            samples, batch_size=None, num_workers=recipe.workers, multiprocessing_context="fork", prefetch_factor=4
        )
        if recipe.workers
        else samples
    )
    generator = torch.Generator().manual_seed(recipe.seed + state["step"])
    recent: dict[str, list[float]] = defaultdict(list)
    began, last = time.monotonic() - state["spent"], False

    def swap() -> None:
        for p, a in zip(params, average, strict=True):
            value = p.detach().clone()
            p.data.copy_(a)
            a.copy_(value)

    scores: dict[str, float] = {}
    while not last:
        state["spent"] = time.monotonic() - began
        progress.value = share = min(1.0, state["spent"] / (60 * recipe.minutes))
        last = share >= 1.0
        rate = (
            recipe.rate * min(1.0, share / recipe.warmup + 0.05) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        )
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        batch = next(loader).to(device)
        text, dense, result = losses(trainer, batch, random_drops(batch, generator))
        (text + recipe.dense_weight * (1 - share) * dense).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        torch._foreach_lerp_(
            average, [p.detach() for p in params], 1 - min(recipe.ema, (state["step"] + 1) / (state["step"] + 10))
        )
        state["step"] += 1
        recent["text"].append(text.item())
        recent["dense"].append(dense.item())
        for kind, hits in score(batch, result).items():
            recent[kind] += hits
        if state["step"] % 20 == 0:
            shown = " ".join(f"{k} {sum(v) / len(v):.3f}" for k, v in sorted(recent.items()) if v)
            print(f"{state['step']} {state['spent']:.0f}s kept {batch.index.shape[1]} {shown}", flush=True)
            recent.clear()
        if last or state["step"] % 250 == 0:
            swap()
            scores = validate(trainer, held)
            print(f"validation at {state['step']}: " + " ".join(f"{k} {v:.3f}" for k, v in scores.items()), flush=True)
            save()
            swap()
            stored = {
                "trainer": trainer.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers],
                "average": average,
                "state": state,
            }
            torch.save(stored, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
    swap()
    return scores
