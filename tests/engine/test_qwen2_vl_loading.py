"""A Qwen2-VL folder loads whole, under either set of weight names, or not at all."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine import ModelError, Request, VideoLLM, checkpoint, model_info
from pipeline.engine.chat import Chat
from pipeline.engine.families.qwen2_vl import Qwen2VL
from pipeline.engine.families.qwen2_vl_pixels import PatchPreprocessor
from pipeline.frame_size import TokenBudget
from pruning import PruningConfig
from tests.engine.checkpoints import build_tokenizer
from tests.engine.checkpoints_qwen2_vl import SHAPES, SPECIAL_TOKENS, build_model, write_checkpoint
from tests.engine.videos import make_video

EMBED = "visual.patch_embed.proj.weight"
QUERY = "model.layers.3.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("qwen2-vl"), SHAPES["grouped"])


@pytest.fixture
def folder(good_folder, tmp_path):
    """A copy of a good checkpoint, to be spoilt."""
    return shutil.copytree(good_folder, tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def newer(name):
    """A weight's name as transformers' own modules call it."""
    for old, new in (("visual.", "model.visual."), ("model.", "model.language_model.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        VideoLLM.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_both_sets_of_weight_names_load_alike(good_folder, folder):
    names = load_file(folder / "model.safetensors").keys()
    assert {EMBED, QUERY, "lm_head.weight"} <= names  # as published
    edit_weights(folder, lambda weights: {newer(name): weight for name, weight in weights.items()})
    assert newer(EMBED) in load_file(folder / "model.safetensors")
    old, new = (VideoLLM.load(path, device="cpu")._family._model.state_dict() for path in (good_folder, folder))
    assert old.keys() == new.keys()
    assert all(torch.equal(weight, new[name]) for name, weight in old.items())


@pytest.mark.parametrize("is_newer", [False, True], ids=["published names", "newer names"])
@pytest.mark.parametrize("name", [EMBED, QUERY])
def test_a_missing_an_extra_and_a_misshapen_weight_are_named(folder, name, is_newer):
    if is_newer:
        edit_weights(folder, lambda weights: {newer(key): weight for key, weight in weights.items()})
        name = newer(name)
    good = load_file(folder / "model.safetensors")
    inner = name.split(".", 1)[1].replace(".", r"\.")
    edit_weights(folder, lambda weights: weights.update({name: weights[name][:-1].contiguous()}))
    refused(folder, rf"weight \S*{inner} has shape \[\d+, .*the model wants")
    edit_weights(folder, lambda weights: weights.pop(name) is None)
    refused(folder, rf"weight \S*{inner} is missing")
    edit_weights(folder, lambda weights: {**good, name.replace("weight", "scale"): torch.ones(2)})
    refused(folder, rf"{inner.replace('weight', 'scale')} is not part of the model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_sliding_window": True, "max_window_layers": 4}, "sliding window"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, r"mrope_section \[16, 24, 24\].* 8 pairs"),
        ({"rope_scaling": None}, r"mrope_section \[\]"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "mrope_section": [2, 3, 3]}}, "rope type 'dynamic'"),
        ({"hidden_size": 128, "num_attention_heads": 8}, "tokens of 64 numbers .* the language model takes 128"),
        ({"video_token_id": 9999}, "no token 9999"),
        ({"num_hidden_layers": "many"}, r"config\.json"),
    ],
)
def test_parts_that_need_another_forward_pass_are_refused(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    refused(folder, message)


def test_patches_must_be_the_vision_tower_s(folder):
    edit_json(folder / "preprocessor_config.json", patch_size=14, max_pixels=28 * 28 * 20)
    refused(folder, r"are \(14, 2, 2\) in the processor's settings and \(4, 2, 2\) in the vision tower's")


def test_sizes_are_known_without_the_weights(good_folder, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "load_weights", None)
    info = model_info(str(good_folder), device="cpu")
    assert info.architecture == "Qwen2VLForConditionalGeneration"
    assert (info.num_layers, info.hidden_size, info.max_positions) == (8, 64, 4096)
    assert (info.default_frames, info.tokens_per_frame) == (32, 10)
    assert info.frame_size == TokenBudget(8, SHAPES["grouped"].min_pixels, SHAPES["grouped"].max_pixels)


def test_a_model_can_be_built_from_its_parts(good_folder):
    shape = SHAPES["grouped"]
    parts = build_model(shape, build_tokenizer(SPECIAL_TOKENS))
    chat = Chat.from_folder(good_folder, parts.config.video_token_id)
    family = Qwen2VL(parts, chat, PatchPreprocessor.from_folder(good_folder))
    request = Request(make_video(3), "what happens", max_new_tokens=5)
    none = PruningConfig(method="none")
    [built] = VideoLLM(checkpoint.Checkpoint.open(good_folder), family).answer([request], none)
    [loaded] = VideoLLM.load(good_folder, device="cpu").answer([request], none)
    assert built.token_ids == loaded.token_ids


def test_the_prompt_stands_behind_the_video_s_marks(good_folder):
    family = VideoLLM.load(good_folder, device="cpu")._family
    prompt = family.tokenize("hi")
    tokens = build_tokenizer(SPECIAL_TOKENS)
    assert tokens.decode(prompt.before).endswith("<|im_start|>user\n<|vision_start|>")
    assert tokens.decode(prompt.after) == "<|vision_end|>hi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tail == 0
    for place_holder in ("<|video_pad|>", "<|image_pad|>"):
        with pytest.raises(ValueError, match="must not contain"):
            family.tokenize(f"what is {place_holder}")
    assert family.time_instruction([0.0, 1.0], 2.0) is None
