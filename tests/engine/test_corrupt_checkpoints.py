"""Whatever the family, a checkpoint that is damaged or of another model is refused in one line, the culprit named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine import ModelError, VideoLLM
from tests.engine.checkpoint_families import WRITERS


@pytest.fixture(scope="module", params=WRITERS)
def good(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def folder(good, tmp_path):
    """A copy of a good checkpoint, to be spoilt."""
    return shutil.copytree(good, tmp_path / "model")


def refused(folder) -> str:
    with pytest.raises(ModelError) as caught:
        VideoLLM.load(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message.replace(str(folder), "")) < 300
    return message


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def parts_of(weights):
    """One weight of the language model and one of the vision tower."""
    return [
        next(name for name in sorted(weights) if "layers.3.mlp.down_proj" in name),
        next(name for name in sorted(weights) if "vision" in name or "visual" in name),
    ]


def inner(name: str) -> str:
    """What of a weight's name does not depend on how the modules around it are called."""
    return name.split("layers.")[-1] if "layers." in name else name.rsplit(".", 2)[-2]


def split(folder, count=3):
    """Spread the weights over several files with an index, as large checkpoints are; the files' names."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    names = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    for n, name in enumerate(names):
        part = {key: weights[key] for key in sorted(weights)[n::count]}
        save_file(part, folder / name, metadata={"format": "pt"})
    weight_map = {key: names[n % count] for n, key in enumerate(sorted(weights))}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def test_weights_in_several_files_are_the_same_model(good, folder):
    split(folder)
    whole, parts = (VideoLLM.load(path, device="cpu")._family._model.state_dict() for path in (good, folder))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())


@pytest.mark.parametrize("part", [0, 1], ids=["language model", "vision tower"])
def test_a_weight_that_is_missing_or_misshapen_is_named(folder, part):
    weights = load_file(folder / "model.safetensors")
    name = parts_of(weights)[part]
    edit_weights(folder, lambda weights: weights.update({name: weights[name][:-1].clone()}))
    message = refused(folder)
    assert inner(name) in message
    shape = list(weights[name].shape)
    assert f"has shape {[shape[0] - 1, *shape[1:]]}, the model wants {shape}" in message
    edit_weights(folder, lambda weights: weights.pop(name))
    message = refused(folder)
    assert inner(name) in message
    assert message.endswith("is missing")


def test_a_left_over_weight_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    name = parts_of(weights)[0].replace("layers.3", "layers.8")
    edit_weights(folder, lambda weights: weights.update({name: torch.zeros(64, 96)}))
    message = refused(folder)
    assert "layers.8.mlp.down_proj" in message
    assert message.endswith("is not part of the model")


def test_a_config_of_fewer_layers_is_another_model(folder):
    text = (folder / "config.json").read_text()
    assert '"num_hidden_layers": 8' in text
    config = json.loads(text.replace('"num_hidden_layers": 8', '"num_hidden_layers": 7'))
    config.get("text_config", {}).pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    message = refused(folder)
    assert "layers.7." in message
    assert "is not part of the model" in message


@pytest.mark.parametrize("kept", [0, 1000, -100], ids=["empty", "cut in the header", "cut at the end"])
def test_a_truncated_weight_file_is_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors" in refused(folder)


def test_a_truncated_one_of_several_files_is_named(folder):
    path = folder / split(folder)[1]
    path.write_bytes(path.read_bytes()[:-100])
    assert path.name in refused(folder)


def test_a_file_that_the_index_names_must_be_there(folder):
    path = folder / split(folder)[1]
    path.unlink()
    assert path.name in refused(folder)


@pytest.mark.parametrize("content", ["{ not json", "{}", '{"weight_map": ["a"]}'])
def test_a_damaged_index_is_named(folder, content):
    split(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_is_never_read_whatever_its_name(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(f"cos\nsystem\n(S'touch {tmp_path}/opened'\ntR.".encode())
    assert name in refused(folder)
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("key", ["model_type", "architectures"])
def test_an_unknown_architecture_names_the_supported_ones(folder, key):
    config = json.loads((folder / "config.json").read_text())
    ours = config["architectures"][0]
    config[key] = {"model_type": "qwen9_vl", "architectures": ["Qwen9VL"]}[key]
    (folder / "config.json").write_text(json.dumps(config))
    message = refused(folder)
    assert "unknown architecture (" in message
    assert "wen9" in message.split(";")[0]
    assert ours in message.split("supported: ")[1]


def test_a_folder_without_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer (none of tokenizer.json" in refused(folder)


@pytest.mark.parametrize("content", ["{ not json", "[]"])
def test_damaged_json_is_named(good, folder, content):
    names = [path.name for path in good.glob("*.json")]
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(names)
    for name in names:
        (folder / name).write_text(content)
        assert name in refused(folder)
        shutil.copy(good / name, folder / name)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages[0]['nothing']['at all'] }}", "no video"])
def test_a_damaged_template_is_refused(folder, template):
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template)
    assert "chat template" in refused(folder)
