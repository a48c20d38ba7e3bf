"""Shapes of every family that run in milliseconds."""

import torch

from pipeline.benchmark.engine.shapes import (
    Shape,
    llava_onevision,
    llava_onevision_config,
    llava_video,
    qwen2_7b,
    qwen2_vl,
    qwen2_vl_config,
    siglip,
)
from pipeline.benchmark.engine.subject import Subject
from pipeline.engine.families.llava_video_config import LlavaVideoConfig

SIZE = (60, 80)


def text(**changes):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 200,
    }
    return qwen2_7b(**(sizes | changes))


def vision():
    return siglip(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=8
    )


MICRO = {
    "llava-onevision": Shape("micro", 8, SIZE, llava_onevision(llava_onevision_config(vision(), text()))),
    "llava-video": Shape("micro", 8, SIZE, llava_video(LlavaVideoConfig(text(), vision(), "bilinear"))),
    "qwen2-vl": Shape(
        "micro",
        8,
        SIZE,
        qwen2_vl(qwen2_vl_config({"depth": 2, "embed_dim": 32, "num_heads": 2}, text(), (2, 3, 3)), 16, 64),
    ),
}


def micro_subject(name):
    return Subject.load(MICRO[name], None, torch.float32, torch.device("cpu"))
