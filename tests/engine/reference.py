"""Slow references: transformers' own forward, and one that keeps all tokens and masks the dropped ones."""

from dataclasses import dataclass

import torch
from transformers import DynamicCache, LlavaOnevisionForConditionalGeneration

from pipeline.engine import Request, VideoLLM
from pruning import StagePlan
from tests.engine.recording import Decision


def load_reference(folder) -> LlavaOnevisionForConditionalGeneration:
    """The checkpoint through transformers alone, with its plain attention."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def prompt_inputs(llm: VideoLLM, reference: LlavaOnevisionForConditionalGeneration, request: Request) -> dict:
    """What transformers' processor would make of a request, with the engine's pixels."""
    family = llm._family
    prompt = family.tokenize(request.prompt)
    grid = family.grid(request.frames.shape[0])
    video = [reference.config.video_token_id] * (grid.tokens + 1)  # the newline after the video
    ids = torch.tensor([[*prompt.before, *video, *prompt.after]])
    pixels = family.preprocess(torch.as_tensor(request.frames))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels[None]}


def embed(reference, inputs: dict, token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [1, S, d] of the prompt and all but the last generated token, and the video tokens' places [N].

    Done here because a random model may generate the place holder's id, which transformers' forward
    would take for another video.
    """
    ids = torch.cat((inputs["input_ids"], torch.tensor([token_ids[:-1]], dtype=torch.int64)), dim=1)
    hidden = reference.get_input_embeddings()(ids)
    place = (inputs["input_ids"][0] == reference.config.video_token_id).nonzero()[:, 0]
    hidden[0, place] = reference.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
    return hidden, place[:-1]  # the last one is the newline, which is text


@torch.inference_mode()
def dense_logits(reference, inputs: dict, token_ids: list[int]) -> torch.Tensor:
    """Logits [n, V] before each of n generated tokens, in one forward pass over prompt and answer."""
    hidden, _ = embed(reference, inputs, token_ids)
    output = reference(inputs_embeds=hidden, attention_mask=torch.ones(hidden.shape[:2]), use_cache=False)
    return output.logits[0, inputs["input_ids"].shape[1] - 1 :]


@dataclass
class MaskedRun:
    """`logits` [n, V] before each generated token; `cache` keys and values of the live prompt tokens by layer."""

    logits: torch.Tensor
    cache: list[tuple[torch.Tensor, torch.Tensor]]


@torch.inference_mode()
def masked_run(
    reference, inputs: dict, token_ids: list[int], plan: StagePlan, decisions: dict[int, Decision]
) -> MaskedRun:
    """Forward of prompt and answer in which dropped tokens stay but are hidden from everybody else.

    A token that leaves at the input is hidden from layer 0 on; one that leaves at a later stage
    still is a key in that stage's layer and hidden from the next. Merged values replace the
    embeddings, or the residual stream before that layer's MLP.
    """
    language_model = reference.model.language_model
    hidden, place = embed(reference, inputs, token_ids)
    length = hidden.shape[1]
    rope = language_model.rotary_emb(hidden, torch.arange(length)[None])
    cache = DynamicCache()
    stage_of = {layer: stage for stage, layer in enumerate(plan.layers)}

    is_live = torch.ones(length, dtype=torch.bool)
    prompt_length = inputs["input_ids"].shape[1]
    entries = []

    def drop(stage: int) -> None:
        if stage not in decisions:
            return
        decision = decisions[stage]
        is_live[place] = False
        is_live[place[decision.index]] = True
        if decision.values is not None:
            hidden[0, place[decision.index]] = decision.values

    drop(0)
    for number, layer in enumerate(language_model.layers):
        visible = torch.ones(length, length, dtype=torch.bool).tril() & is_live[None, :]
        visible |= torch.eye(length, dtype=torch.bool)  # a dropped token sees itself, or its row would be NaN
        mask = torch.zeros(length, length).masked_fill(~visible, torch.finfo(torch.float32).min)
        attended, _ = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden),
            position_embeddings=rope,
            attention_mask=mask[None, None],
            past_key_values=cache,
        )
        rows = is_live[:prompt_length].nonzero()[:, 0]
        entries.append((cache.layers[number].keys[0][:, rows], cache.layers[number].values[0][:, rows]))
        hidden = hidden + attended
        if number > 0 and number in stage_of:
            drop(stage_of[number])
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits = reference.lm_head(language_model.norm(hidden))[0, prompt_length - 1 :]
    return MaskedRun(logits, entries)
