"""Small random LLaVA-Video checkpoints in the published layout, and the modules that their weights were taken from."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from tests.engine.checkpoints import END_TOKEN, build_tokenizer, randomize

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # nothing of pictures

# A text-only template, like that of the language model in the published folder.
CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

TOWER = "model.vision_tower.vision_tower.vision_model."


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint; `vision_layers` counts the tower's last layer, which is not in the weights."""

    pool_mode: str = "bilinear"
    hidden: int = 64
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 96
    vision_hidden: int = 32
    vision_ffn: int = 48
    vision_layers: int = 3
    image_size: int = 35
    patch_size: int = 5
    max_positions: int = 4096
    is_tied: bool = False
    num_files: int = 3
    seed: int = 0


SHAPES = {
    "bilinear": Shape(),
    "average": Shape(pool_mode="average", hidden=48, layers=5, heads=3, kv_heads=3, seed=1),
    "even-grid-tied": Shape(image_size=32, patch_size=4, is_tied=True, vision_layers=2, num_files=1, seed=2),
}


class Parts(nn.Module):
    """The parts as transformers and torch have them; what connects them is not here."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        vocabulary = len(build_tokenizer(SPECIAL_TOKENS)) + 3  # real checkpoints pad their vocabulary
        self.shape = shape
        self.llm = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=vocabulary,
                hidden_size=shape.hidden,
                intermediate_size=shape.ffn,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                max_position_embeddings=shape.max_positions,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                tie_word_embeddings=shape.is_tied,
                attn_implementation="eager",
            )
        )
        vision = SiglipVisionConfig(**vision_config(shape), vision_use_head=False, attn_implementation="eager")
        self.tower = SiglipVisionModel(vision)
        self.project_in = nn.Linear(shape.vision_hidden, shape.hidden)
        self.project_out = nn.Linear(shape.hidden, shape.hidden)
        self.newline = nn.Parameter(torch.empty(shape.hidden))
        self.float().eval().requires_grad_(False)
        randomize(self, shape.seed)


def vision_config(shape: Shape) -> dict:
    return {
        "hidden_size": shape.vision_hidden,
        "intermediate_size": shape.vision_ffn,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": 2,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
    }


def build_config(shape: Shape, vocabulary: int) -> dict:
    """config.json with the published keys, and the sizes of a tower that has no published name."""
    return {
        "add_faster_video": False,
        "add_time_instruction": False,
        "architectures": ["LlavaQwenForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 256,
        "eos_token_id": 258,
        "faster_token_stride": 10,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "image_aspect_ratio": "anyres_max_9",
        "image_token_index": 151646,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "max_window_layers": shape.layers,
        "mm_hidden_size": shape.vision_hidden,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_spatial_pool_mode": shape.pool_mode,
        "mm_spatial_pool_stride": 2,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "someone/siglip-of-their-own",
        "model_type": "llava",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "float32",
        "use_mm_proj": True,
        "use_sliding_window": False,
        "vision_config": {"model_type": "siglip_vision_model", **vision_config(shape)},
        "vocab_size": vocabulary,
    }


def published_weights(parts: Parts) -> dict[str, torch.Tensor]:
    """The weights under their published names."""
    last = f"encoder.layers.{parts.shape.vision_layers - 1}."
    weights = {TOWER + name: weight for name, weight in parts.tower.state_dict().items() if not name.startswith(last)}
    weights |= parts.llm.state_dict()
    if parts.shape.is_tied:
        del weights["lm_head.weight"]
    weights["model.image_newline"] = parts.newline.data
    weights |= {f"model.mm_projector.0.{name}": weight for name, weight in parts.project_in.state_dict().items()}
    weights |= {f"model.mm_projector.2.{name}": weight for name, weight in parts.project_out.state_dict().items()}
    return weights


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a whole checkpoint folder and return it."""
    parts = Parts(shape)
    weights = published_weights(parts)
    names = sorted(weights)
    if shape.num_files == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        files = [f"model-{n + 1:05}-of-{shape.num_files:05}.safetensors" for n in range(shape.num_files)]
        for n, file in enumerate(files):
            save_file({name: weights[name] for name in names[n :: len(files)]}, folder / file)
        weight_map = {name: files[n % len(files)] for n, name in enumerate(names)}
        index = {"metadata": {"total_size": 4 * sum(w.numel() for w in weights.values())}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", build_config(shape, parts.llm.config.vocab_size))
    tokenizer = build_tokenizer(SPECIAL_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids([END_TOKEN, "<|endoftext|>"])
    GenerationConfig(eos_token_id=ends).save_pretrained(folder)
    return folder


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
