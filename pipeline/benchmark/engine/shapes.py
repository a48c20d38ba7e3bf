"""The sizes that can be measured, and models of these sizes with random weights, built where they will run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    SiglipVisionConfig,
)

from pipeline.benchmark.engine.chat import FixedChat
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.families import Family
from pipeline.engine.families.llava_onevision import LlavaOnevision
from pipeline.engine.families.llava_video import LlavaVideo
from pipeline.engine.families.llava_video_config import LlavaVideoConfig
from pipeline.engine.families.llava_video_model import LlavaVideoModel
from pipeline.engine.families.qwen2_vl import Qwen2VL
from pipeline.engine.families.qwen2_vl_pixels import PatchPreprocessor
from pipeline.engine.preprocess import FramePreprocessor

Builder = Callable[[torch.dtype, torch.device], Family]
"""Builds a family of one shape in a type, on a device; what its weights hold is nobody's business yet."""

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Shape:
    """A model's sizes, and the video that it is shown: `frames` of `frame_size` (height, width) pixels.

    `source` is the checkpoint that has these sizes, where one comes with the project.
    """

    name: str
    frames: int
    frame_size: tuple[int, int]
    build: Builder
    source: str | None = None


def llava_onevision(config: LlavaOnevisionConfig) -> Builder:
    """Builds a LLaVA-OneVision."""

    def build(dtype: torch.dtype, device: torch.device) -> Family:
        model = _from_config(LlavaOnevisionForConditionalGeneration, config, dtype, device)
        return LlavaOnevision(model, _chat(), _siglip_preprocessor(config.vision_config))

    return build


def llava_video(config: LlavaVideoConfig) -> Builder:
    """Builds a LLaVA-Video."""

    def build(dtype: torch.dtype, device: torch.device) -> Family:
        with torch.device("meta"):
            model = LlavaVideoModel(copy.deepcopy(config)).to(dtype)
        if device.type != "meta":
            model.to_empty(device=device)
            model.tie_weights()
            model.fix_tables(device)
        return LlavaVideo(model.eval().requires_grad_(False), _chat(), _siglip_preprocessor(config.vision))

    return build


def qwen2_vl(config: Qwen2VLConfig, min_tokens: int = 128, max_tokens: int = 768) -> Builder:
    """Builds a Qwen2-VL whose frames have `min_tokens` to `max_tokens` tokens."""
    vision: Any = config.vision_config
    token = (vision.patch_size * vision.spatial_merge_size) ** 2

    def build(dtype: torch.dtype, device: torch.device) -> Family:
        model = _from_config(Qwen2VLForConditionalGeneration, config, dtype, device)
        preprocessor = PatchPreprocessor(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            min_pixels=min_tokens * token,
            max_pixels=max_tokens * token,
            mean=_CLIP_MEAN,
            std=_CLIP_STD,
        )
        return Qwen2VL(model, _chat(), preprocessor)

    return build


def qwen2_7b(**changes: Any) -> Qwen2Config:
    """The language model of all three published 7B models."""
    sizes: dict[str, Any] = {
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "max_position_embeddings": 32_768,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "eos_token_id": None,
        "bos_token_id": None,
    }
    return Qwen2Config(**(sizes | changes))


def siglip(**changes: Any) -> SiglipVisionConfig:
    """SigLIP so400m at 384 pixels without its last layer, as the LLaVA models run it: 27 × 27 patches."""
    sizes: dict[str, Any] = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "vision_use_head": False,
    }
    return SiglipVisionConfig(**(sizes | changes))


def llava_onevision_config(vision: SiglipVisionConfig, text: Qwen2Config) -> LlavaOnevisionConfig:
    """A config whose place holders are the vocabulary's last two tokens."""
    last = text.vocab_size - 1
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=last - 1,
        video_token_index=last,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def qwen2_vl_config(vision: dict[str, Any], text: Qwen2Config, sections: tuple[int, int, int]) -> Qwen2VLConfig:
    """A config whose place holders are the vocabulary's last ones; M-RoPE divides half a head into `sections`."""
    last = text.vocab_size - 1
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": list(sections)}
    return Qwen2VLConfig(
        vision_config={**vision, "hidden_size": text.hidden_size},
        text_config={**text.to_dict(), "model_type": "qwen2_vl_text", "rope_parameters": rope},
        image_token_id=last - 1,
        video_token_id=last,
        vision_start_token_id=last - 3,
        vision_end_token_id=last - 2,
    )


def _tiny(dtype: torch.dtype, device: torch.device) -> Family:
    config = LlavaOnevisionConfig.from_dict(copy.deepcopy(Checkpoint.open("builtin:tiny").config))
    return llava_onevision(config)(dtype, device)


_SMALL_TEXT = qwen2_7b(
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    vocab_size=32_000,
    max_position_embeddings=131_072,
)
_SMALL_VISION = siglip(hidden_size=192, intermediate_size=768, num_hidden_layers=4, num_attention_heads=3)

SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("tiny", 16, (96, 96), _tiny, "builtin:tiny"),
        Shape("small", 16, (360, 640), llava_onevision(llava_onevision_config(_SMALL_VISION, _SMALL_TEXT))),
        Shape("llava-onevision-7b", 32, (360, 640), llava_onevision(llava_onevision_config(siglip(), qwen2_7b()))),
        Shape("llava-video-7b", 64, (360, 640), llava_video(LlavaVideoConfig(qwen2_7b(), siglip(), "bilinear"))),
        Shape(
            "qwen2-vl-7b",
            64,
            (360, 640),
            qwen2_vl(qwen2_vl_config({"depth": 32, "embed_dim": 1280, "num_heads": 16}, qwen2_7b(), (16, 24, 24))),
        ),
    )
}


def _from_config(kind: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    with device:
        model = kind._from_config(copy.deepcopy(config), dtype=dtype, attn_implementation="sdpa")
    return model.eval().requires_grad_(False)


def _siglip_preprocessor(vision: Any) -> FramePreprocessor:
    return FramePreprocessor(vision.image_size, vision.image_size, _HALF, _HALF, 1 / 255)


def _chat() -> Any:
    return FixedChat()
