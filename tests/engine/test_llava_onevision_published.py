"""LLaVA-OneVision's published folders of 0.5B and 7B: their sizes and weight names, without their memory."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

from pipeline.engine import VideoLLM
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.families.llava_onevision import LlavaOnevision
from pipeline.frame_size import FixedSize
from tests.engine.checkpoints import Shape, build_model, build_tokenizer, write_checkpoint

VISION = {
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}
TEXT = {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False, "torch_dtype": "bfloat16"}
CONFIG = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "image_token_index": 151646,
    "model_type": "llava_onevision",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_image_newline_parameter": True,
    "video_token_index": 151647,
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": VISION,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
SMALL = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,  # only here: the whole model's config says false
    "vocab_size": 152000,
}
LARGE = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}


def published_names(layers: int, vision_layers: int, is_tied: bool) -> set[str]:
    """The weights' names in the published files."""
    names = {"image_newline", "language_model.model.embed_tokens.weight", "language_model.model.norm.weight"}
    names |= {f"multi_modal_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    if not is_tied:
        names.add("language_model.lm_head.weight")
    for n in range(layers):
        layer = f"language_model.model.layers.{n}."
        names |= {f"{layer}{norm}_layernorm.weight" for norm in ("input", "post_attention")}
        names |= {f"{layer}mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
        names |= {f"{layer}self_attn.{part}_proj.weight" for part in "qkvo"}
        names |= {f"{layer}self_attn.{part}_proj.bias" for part in "qkv"}
    tower = "vision_tower.vision_model."
    names |= {f"{tower}embeddings.{name}" for name in ("patch_embedding.weight", "patch_embedding.bias")}
    names |= {f"{tower}embeddings.position_embedding.weight"}
    parts = [f"encoder.layers.{n}.self_attn.{part}" for n in range(vision_layers) for part in PROJECTIONS]
    parts += [f"encoder.layers.{n}.{part}" for n in range(vision_layers) for part in ("layer_norm1", "layer_norm2")]
    parts += [f"encoder.layers.{n}.mlp.{part}" for n in range(vision_layers) for part in ("fc1", "fc2")]
    return names | {f"{tower}{part}.{kind}" for part in [*parts, "post_layernorm"] for kind in ("weight", "bias")}


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


def published(name: str) -> str:
    """The published name of a weight of transformers' modules."""
    for ours, theirs in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.", ""),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("text", "is_tied", "parameters", "head_size"),
    [(SMALL, True, 0.894e9, 64), (LARGE, False, 8.03e9, 128)],
    ids=["0.5B", "7B"],
)
def test_published_shapes_and_names(tmp_path, text, is_tied, parameters, head_size):
    source = Checkpoint("published", tmp_path, {**CONFIG, "text_config": {**TEXT, **text}})
    sizes = LlavaOnevision.sizes(source)
    assert (sizes.frame_size, sizes.tokens_per_frame, sizes.max_positions) == (FixedSize(384, 384), 196, 32768)
    assert (sizes.num_layers, sizes.hidden_size) == (text["num_hidden_layers"], text["hidden_size"])
    with torch.device("meta"):
        model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_dict(source.config))
    names = {published(name) for name, _ in model.named_parameters()}
    assert names == published_names(text["num_hidden_layers"], 26, is_tied)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(parameters, rel=0.01)
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == is_tied
    family = LlavaOnevision(model, None, None)
    grid = family.grid(32)
    assert (grid.tokens, grid.positions, grid.columns, grid.constants) == (32 * 196, 196, 14, ())
    assert family.patches(torch.empty(1, 3, 384, 384, device="meta")) == 729
    shape = family.decoder.shape
    assert (shape.heads, shape.kv_heads) == (text["num_attention_heads"], text["num_key_value_heads"])
    assert (shape.head_size, shape.ffn) == (head_size, text["intermediate_size"])


@pytest.mark.parametrize("is_tied", [False, True])
def test_published_names_load(tmp_path, is_tied):
    shape = Shape(layers=2, is_tied=is_tied)
    folder = write_checkpoint(tmp_path, shape)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == published_names(shape.layers, shape.vision_layers, is_tied)
    for name, weight in VideoLLM.load(folder, device="cpu")._family._model.named_parameters():
        assert torch.equal(weight, weights[published(name)]), name


def test_names_that_transformers_writes_today_load_alike(tmp_path):
    shape = Shape(layers=2)
    folder = write_checkpoint(tmp_path, shape)
    expected = VideoLLM.load(folder, device="cpu")._family._model.state_dict()
    build_model(shape, build_tokenizer()).save_pretrained(folder)
    assert "vision_tower.post_layernorm.weight" in load_file(folder / "model.safetensors")
    for name, weight in VideoLLM.load(folder, device="cpu")._family._model.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_embeddings_are_tied_where_only_the_language_models_config_says_so(tmp_path):
    folder = write_checkpoint(tmp_path, Shape(layers=2, is_tied=True))
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"], config["text_config"]["tie_word_embeddings"] = False, True
    (folder / "config.json").write_text(json.dumps(config))
    model = VideoLLM.load(folder, device="cpu")._family._model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
