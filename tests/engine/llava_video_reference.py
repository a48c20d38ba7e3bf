"""LLaVA-Video by hand: its video tokens number by number, and a forward pass from which pruned tokens are taken out."""

import torch
from torch.nn import functional as F

from pruning import Kept, PruningConfig, StagePlan, make_pruner


def video_tokens(parts, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Video tokens [positions, hidden] of each frame, from the whole tower's states before its last layer."""
    states = parts.tower(pixels, output_hidden_states=True).hidden_states[-2]
    projected = parts.project_out(F.gelu(parts.project_in(states)))
    return [with_newlines(pooled(parts, frame), parts.newline) for frame in projected]


def received_attention(parts, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Attention [positions] that each frame's places receive in the last layer that is run, newlines none."""
    weights = parts.tower(pixels, output_attentions=True).attentions[-2].mean(dim=(1, 2))
    return [with_newlines(pooled(parts, frame[:, None]), torch.zeros(1))[:, 0] for frame in weights]


def pooled(parts, patches: torch.Tensor) -> list[list[torch.Tensor]]:
    """Rows of tokens from patches [side², n], one number of the picture's grid after the other."""
    side = parts.shape.image_size // parts.shape.patch_size
    at = patches.unflatten(0, (side, side))
    if parts.shape.pool_mode == "average":
        pair = {start: [(start, 0.5), (start + 1, 0.5)] for start in range(0, side - 1, 2)}
        return [[blend(at, pair[y], pair[x]) for x in pair] for y in pair]
    size = -(-side // 2)
    return [[blend(at, taps(y, side, size), taps(x, side, size)) for x in range(size)] for y in range(size)]


def taps(place: int, side: int, size: int) -> list[tuple[int, float]]:
    """The patches between whose centres a token's centre lies, and the weight of each."""
    center = max(0.0, (place + 0.5) * side / size - 0.5)
    low = int(center)
    return [(low, 1 - (center - low)), (min(low + 1, side - 1), center - low)]


def blend(at: torch.Tensor, rows: list[tuple[int, float]], columns: list[tuple[int, float]]) -> torch.Tensor:
    return sum(down * across * at[y, x] for y, down in rows for x, across in columns)


def with_newlines(rows: list[list[torch.Tensor]], newline: torch.Tensor) -> torch.Tensor:
    return torch.stack([token for row in rows for token in (*row, newline)])


class NotingPruner:
    """Passes on what a method decides, and keeps it: for each seed the decisions by stage and the plan."""

    def __init__(self, method: str, **options):
        self._pruner = make_pruner(PruningConfig(method=method, **options))
        self.name, self.needs = self._pruner.name, self._pruner.needs
        self.plan = self._pruner.plan
        self.kept: dict[int, dict[int, tuple[torch.Tensor, Kept]]] = {}
        self.plans: dict[int, StagePlan] = {}

    def prune_input(self, videos):
        return self._note(0, videos, self._pruner.prune_input(videos))

    def prune_layer(self, stage, videos):
        return self._note(stage, videos, self._pruner.prune_layer(stage, videos))

    def _note(self, stage, videos, decisions):
        for video, decision in zip(videos, decisions, strict=True):
            self.plans[video.seed] = video.plan
            self.kept.setdefault(video.seed, {})[stage] = (video.index, decision)
        return decisions


@torch.inference_mode()
def log_probabilities(parts, prompt, tokens, answer: list[int], plan=None, kept=None) -> torch.Tensor:
    """Natural logarithms [n] of the probabilities of an answer's tokens, in one pass over prompt and answer.

    `tokens` are the video's [N, hidden]. With a plan, `kept` are the decisions by stage: rows that leave
    are cut out of the sequence, before layer 0 or between attention and MLP of a stage's layer.
    """
    model = parts.llm.model
    text = model.embed_tokens(torch.tensor([*prompt.before, *prompt.after, *answer[:-1]]))
    first, end = len(prompt.before), len(prompt.before) + len(tokens)
    hidden = torch.cat((text[:first], tokens, text[first:]))
    position = torch.arange(len(hidden))
    stages = {} if plan is None else dict(zip(plan.layers, range(len(plan.layers)), strict=True))

    def cut(stage, hidden, position):
        if stage not in (kept or {}):
            return hidden, position
        index, decision = kept[stage]
        places = index[decision.keep] + first
        hidden = hidden.clone()
        if decision.values is not None:
            hidden[torch.isin(position, places)] = decision.values
        stays = (position < first) | (position >= end) | torch.isin(position, places)
        return hidden[stays], position[stays]

    hidden, position = cut(0, hidden, position)
    for number, layer in enumerate(model.layers):
        rope = model.rotary_emb(hidden[None], position[None])
        mask = torch.full((len(hidden), len(hidden)), torch.finfo(torch.float32).min).triu(1)
        normed = layer.input_layernorm(hidden[None])
        hidden = hidden + layer.self_attn(normed, position_embeddings=rope, attention_mask=mask[None, None])[0][0]
        if number:
            hidden, position = cut(stages.get(number), hidden, position)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits = parts.llm.lm_head(model.norm(hidden[-len(answer) :]))
    return logits.log_softmax(dim=-1)[torch.arange(len(answer)), torch.tensor(answer)]
