"""What a LLaVA-OneVision folder may not ask for, where models come from, and what is known of them beforehand."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine import ModelError, VideoLLM, checkpoint, info, model_info
from pipeline.frame_size import FixedSize
from tests.engine.checkpoints import Shape, write_checkpoint


@pytest.fixture
def folder(grouped_folder, tmp_path):
    """A copy of a good checkpoint, to be spoilt."""
    return shutil.copytree(grouped_folder, tmp_path / "model")


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
    path.write_text(json.dumps(content))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        VideoLLM.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("text_config", {"model_type": "llama"}, "language model 'llama'"),
        ("text_config", {"layer_types": ["sliding_attention"] * 8}, "sliding window"),
        ("text_config", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope type"),
        ("vision_config", {"model_type": "clip_vision_model"}, "vision tower 'clip_vision_model'"),
    ],
)
def test_parts_that_need_another_forward_pass_are_refused(folder, section, changes, message):
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", **{section: {**config[section], **changes}})
    refused(folder, message)


def test_a_processor_for_another_image_size_is_refused(folder):
    edit_json(folder / "preprocessor_config.json", size={"height": 64, "width": 64})
    refused(folder, "64x64 frames, the vision tower takes 32x32")


def test_a_tokenizer_without_the_video_token_is_refused(folder):
    edit_json(folder / "config.json", video_token_index=999)
    refused(folder, "no token 999")


def test_a_template_without_a_video_is_refused(folder):
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][1]['text'] }}")
    refused(folder, "puts 0 videos")


def test_a_folder_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    refused(folder, "no chat template")


def test_a_template_in_the_older_file_is_used(folder):
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.replace("assistant", "helper")}))
    family = VideoLLM.load(folder, device="cpu")._family
    assert family.decode_text(family.tokenize("hi").after).strip().endswith("helper")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "not a local folder"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "not a local folder"),
        ("builtin:huge", "there is: builtin:tiny"),
    ],
)
def test_sources_that_are_no_folder_are_refused(source, message):
    refused(source, message)


def test_a_folder_without_config_is_refused(tmp_path):
    refused(tmp_path, r"no config\.json")


def test_unknown_devices_and_dtypes_are_refused(grouped_folder, monkeypatch):
    with pytest.raises(ModelError, match="device 'tpu'"):
        VideoLLM.load(grouped_folder, device="tpu")
    with pytest.raises(ModelError, match="dtype 'int4'"):
        VideoLLM.load(grouped_folder, device="cpu", dtype="int4")
    monkeypatch.setattr(info.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device"):
        VideoLLM.load(grouped_folder, device="cuda")


def test_the_dtype_is_that_asked_for(grouped_folder):
    model = VideoLLM.load(grouped_folder, device="cpu", dtype="bfloat16")
    assert model.info.dtype == "bfloat16"
    assert {weight.dtype for weight in model._family._model.parameters()} == {torch.bfloat16}
    assert VideoLLM.load(grouped_folder, device="cpu").info.dtype == "float32"


def test_info_is_known_without_loading_the_weights(llm, grouped_folder, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "load_weights", None)
    described = model_info(str(grouped_folder), device="cpu")
    assert described == llm.info
    assert described.name == grouped_folder.name
    assert (described.num_layers, described.hidden_size, described.frame_size) == (8, 64, FixedSize(32, 32))
    assert described.default_frames == 32


def test_a_checkpoint_s_own_frame_count_is_the_default(tmp_path):
    write_checkpoint(tmp_path, Shape(layers=1, num_frames=12))
    assert model_info(str(tmp_path), device="cpu").default_frames == 12


def test_the_hash_follows_content_and_nothing_else(folder, grouped_folder):
    before = model_info(str(grouped_folder), device="cpu").model_hash
    (folder / "README.md").write_text("notes")
    assert model_info(str(folder), device="cpu").model_hash == before
    edit_json(folder / "generation_config.json", eos_token_id=1)
    changed = model_info(str(folder), device="cpu").model_hash
    assert changed != before
    edit_weights(folder, lambda weights: weights[PROJECTOR].mul_(1.5))
    assert model_info(str(folder), device="cpu").model_hash not in (before, changed)
