"""Small random Qwen2-VL checkpoints in the published layout, with non-degenerate weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tests.engine.checkpoints import END_TOKEN, build_tokenizer, randomize

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT_TEMPLATE = """{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' %}<|im_start|>system
You help.<|im_end|>
{% endif -%}
<|im_start|>{{ message['role'] }}
{% for part in message['content'] -%}
{%- if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>
{%- elif part['type'] == 'text' %}{{ part['text'] }}{% endif -%}
{%- endfor -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint; `sections` divide the pairs of a decoder head among time, height and width."""

    hidden: int = 64
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    sections: tuple[int, int, int] = (2, 3, 3)
    ffn: int = 96
    vision_embed: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    patch_size: int = 4
    min_pixels: int = 4 * 64
    max_pixels: int = 20 * 64
    max_positions: int = 4096
    is_tied: bool = False
    seed: int = 0

    @property
    def token_side(self) -> int:
        """Pixels a side of one video token."""
        return 2 * self.patch_size


SHAPES = {
    "grouped": Shape(),
    "no-groups": Shape(hidden=48, layers=5, heads=3, kv_heads=3, sections=(4, 2, 2), vision_heads=4, seed=1),
    "tied": Shape(
        hidden=96, layers=9, heads=6, kv_heads=1, ffn=160, patch_size=6, max_pixels=1728, is_tied=True, seed=2
    ),
}


def build_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> dict:
    """config.json as the published folders have it: the language model's keys at the top level."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids[END_TOKEN],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": shape.max_positions,
        "max_window_layers": shape.layers,
        "model_type": "qwen2_vl",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": shape.vision_depth,
            "embed_dim": shape.vision_embed,
            "mlp_ratio": 4,
            "num_heads": shape.vision_heads,
            "in_chans": 3,
            "hidden_size": shape.hidden,
            "patch_size": shape.patch_size,
            "spatial_merge_size": 2,
            "spatial_patch_size": shape.patch_size,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": list(shape.sections)},
        "vocab_size": len(tokenizer) + 3,  # real checkpoints pad their vocabulary
    }


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLForConditionalGeneration:
    """A random model whose activations keep their scale, so that logits differ clearly."""
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig.from_dict(build_config(shape, tokenizer))).float().eval()
    randomize(model, shape.seed)
    return model


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a whole checkpoint folder with the published weight names and return it."""
    tokenizer = build_tokenizer(SPECIAL_TOKENS)
    model = build_model(shape, tokenizer)
    model.save_pretrained(folder)  # under the published names, which are not those of its modules
    tokenizer.save_pretrained(folder)
    write_json(folder / "config.json", build_config(shape, tokenizer))
    end = tokenizer.convert_tokens_to_ids(END_TOKEN)
    GenerationConfig(eos_token_id=[end, tokenizer.convert_tokens_to_ids("<|endoftext|>")]).save_pretrained(folder)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    processor = {
        "min_pixels": shape.min_pixels,
        "max_pixels": shape.max_pixels,
        "patch_size": shape.patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
    }
    write_json(folder / "preprocessor_config.json", processor)
    return folder


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
