"""Slow references for Qwen2-VL: transformers' own forward, and one that masks dropped tokens, both with M-RoPE."""

import torch
from transformers import DynamicCache, Qwen2VLForConditionalGeneration

from pipeline.engine import Request, VideoLLM
from pruning import StagePlan
from tests.engine.recording import Decision
from tests.engine.reference import MaskedRun


def load_reference(folder) -> Qwen2VLForConditionalGeneration:
    """The checkpoint through transformers alone, with its plain attention."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def patches_of(llm: VideoLLM, frames) -> tuple[torch.Tensor, torch.Tensor]:
    """The engine's pixels of a video as transformers takes them: patches [n, values], and [1, 3] their grid."""
    steps = llm._family.preprocess(torch.as_tensor(frames))
    grid = torch.tensor([[steps.shape[0], 2 * steps.shape[1], 2 * steps.shape[2]]])
    return steps.flatten(0, 3), grid


def prompt_inputs(llm: VideoLLM, reference: Qwen2VLForConditionalGeneration, request: Request) -> dict:
    """What transformers' processor would make of a request, with the engine's pixels."""
    pixels, grid = patches_of(llm, request.frames)
    prompt = llm._family.tokenize(request.prompt)
    video = [reference.config.video_token_id] * (len(pixels) // 4)
    ids = torch.tensor([[*prompt.before, *video, *prompt.after]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == reference.config.video_token_id).int(),
        "pixel_values_videos": pixels,
        "video_grid_thw": grid,
    }


def embed(reference, inputs: dict, token_ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [1, S, d] of the prompt and all but the last generated token, their positions [3, 1, S], and
    the video tokens' places [N].

    Done here because a random model may generate the place holder's id, which transformers' forward
    would take for another video.
    """
    ids = torch.cat((inputs["input_ids"], torch.tensor([token_ids[:-1]], dtype=torch.int64)), dim=1)
    hidden = reference.get_input_embeddings()(ids)
    place = inputs["mm_token_type_ids"][0].nonzero()[:, 0]
    features = reference.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    hidden[0, place] = features.pooler_output[0]
    positions, delta = reference.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], video_grid_thw=inputs["video_grid_thw"]
    )
    length = inputs["input_ids"].shape[1]
    generated = torch.arange(length, ids.shape[1]).expand(3, 1, -1) + delta
    return hidden, torch.cat((positions, generated), dim=2), place


@torch.inference_mode()
def dense_logits(reference, inputs: dict, token_ids: list[int]) -> torch.Tensor:
    """Logits [n, V] before each of n generated tokens, in one forward pass over prompt and answer."""
    hidden, positions, _ = embed(reference, inputs, token_ids)
    output = reference(
        inputs_embeds=hidden,
        position_ids=positions,
        attention_mask=torch.ones(hidden.shape[:2]),
        use_cache=False,
    )
    return output.logits[0, inputs["input_ids"].shape[1] - 1 :]


@torch.inference_mode()
def masked_run(
    reference, inputs: dict, token_ids: list[int], plan: StagePlan, decisions: dict[int, Decision]
) -> MaskedRun:
    """Forward of prompt and answer in which dropped tokens stay, at their positions, but are hidden from all others.

    A token that leaves at the input is hidden from layer 0 on; one that leaves at a later stage still
    is a key in that stage's layer. Merged values replace the embeddings, or what enters that layer's MLP.
    """
    language_model = reference.model.language_model
    hidden, positions, place = embed(reference, inputs, token_ids)
    length, prompt_length = hidden.shape[1], inputs["input_ids"].shape[1]
    rope = language_model.rotary_emb(hidden, positions)
    cache = DynamicCache()
    is_live = torch.ones(length, dtype=torch.bool)
    entries = []

    def drop(stage: int) -> None:
        is_live[place] = False
        is_live[place[decisions[stage].index]] = True
        if decisions[stage].values is not None:
            hidden[0, place[decisions[stage].index]] = decisions[stage].values

    for number, layer in enumerate(language_model.layers):
        stage = plan.layers.index(number) if number in plan.layers else None
        if stage == 0 and 0 in decisions:
            drop(0)
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
        if stage and stage in decisions:
            drop(stage)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    logits = reference.lm_head(language_model.norm(hidden))[0, prompt_length - 1 :]
    return MaskedRun(logits, entries)
