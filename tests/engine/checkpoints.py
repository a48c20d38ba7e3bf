"""Small random LLaVA-OneVision checkpoints in the Hugging Face layout, with non-degenerate weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
END_TOKEN = "<|im_end|>"

CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }} {% for part in message['content'] -%}
{%- if part['type'] == 'video' %}<video>
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif -%}
{%- endfor -%}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint; the decoder's heads are `heads` over `kv_heads`."""

    hidden: int = 64
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 96
    vision_hidden: int = 32
    vision_layers: int = 2
    image_size: int = 32
    patch_size: int = 4
    max_positions: int = 4096
    is_tied: bool = False
    num_frames: int | None = None
    seed: int = 0


SHAPES = {
    "grouped": Shape(),
    "no-groups-odd-grid": Shape(hidden=48, layers=5, heads=3, kv_heads=3, image_size=35, patch_size=5, seed=1),
    "one-kv-head-tied": Shape(hidden=96, layers=9, heads=6, kv_heads=1, ffn=160, patch_size=8, is_tied=True, seed=2),
}


def build_tokenizer(special_tokens: Sequence[str] = SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: 256 bytes and the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_TOKEN, pad_token="<|endoftext|>")


def build_model(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionForConditionalGeneration:
    """A random model whose activations keep their scale, so that logits differ clearly."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=shape.vision_hidden,
            intermediate_size=2 * shape.vision_hidden,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=2,
            image_size=shape.image_size,
            patch_size=shape.patch_size,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer) + 3,  # real checkpoints pad their vocabulary
            hidden_size=shape.hidden,
            intermediate_size=shape.ffn,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=shape.max_positions,
            tie_word_embeddings=shape.is_tied,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=shape.is_tied,
    )
    if shape.num_frames is not None:
        config.num_frames = shape.num_frames
    model = LlavaOnevisionForConditionalGeneration(config).float().eval()
    randomize(model, shape.seed)
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights that let activations keep their scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.2 * noise)
            elif "embed" in name and "patch" not in name:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_(noise * (1.5 / weight[0].numel() ** 0.5))


def publish_names(path: Path) -> None:
    """Call the vision tower's weights as the published folders do: transformers has dropped a level of their names."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {name.replace(old, new): weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def write_checkpoint(folder: Path, shape: Shape) -> Path:
    """Write a whole checkpoint folder and return it."""
    tokenizer = build_tokenizer()
    model = build_model(shape, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(END_TOKEN))
    model.save_pretrained(folder)
    publish_names(folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    processor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "image_std": [0.5, 0.3, 0.25],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": shape.image_size, "width": shape.image_size},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder
