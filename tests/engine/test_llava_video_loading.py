"""LLaVA-Video's published folder: its sizes, its names, and the configs that mean another forward pass."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine import ModelError, VideoLLM, checkpoint, model_info
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.families.llava_video import LlavaVideo
from pipeline.engine.families.llava_video_config import LlavaVideoConfig
from pipeline.engine.families.llava_video_model import LlavaVideoModel
from pipeline.frame_size import FixedSize
from tests.engine.checkpoints_llava_video import CHAT_TEMPLATE, SHAPES, TOWER, build_config, write_checkpoint

PUBLISHED = {
    **build_config(SHAPES["bilinear"], vocabulary=152064),
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "mm_hidden_size": 1152,
    "mm_spatial_pool_stride": None,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    # left over from another class of transformers' and true of no part
    "text_config": {"model_type": "llama"},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
    "vision_feature_layer": -2,
}


def published_shapes() -> dict[str, list[int]]:
    """Names and shapes of the 765 published weights."""
    shapes = {
        "lm_head.weight": [152064, 3584],
        "model.embed_tokens.weight": [152064, 3584],
        "model.image_newline": [3584],
        "model.mm_projector.0.bias": [3584],
        "model.mm_projector.0.weight": [3584, 1152],
        "model.mm_projector.2.bias": [3584],
        "model.mm_projector.2.weight": [3584, 3584],
        "model.norm.weight": [3584],
        f"{TOWER}embeddings.patch_embedding.bias": [1152],
        f"{TOWER}embeddings.patch_embedding.weight": [1152, 3, 14, 14],
        f"{TOWER}embeddings.position_embedding.weight": [729, 1152],
        f"{TOWER}post_layernorm.bias": [1152],
        f"{TOWER}post_layernorm.weight": [1152],
    }
    for n in range(28):
        layer = f"model.layers.{n}."
        shapes |= {f"{layer}{norm}_layernorm.weight": [3584] for norm in ("input", "post_attention")}
        shapes |= {f"{layer}mlp.{part}_proj.weight": [18944, 3584] for part in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": [3584, 18944], f"{layer}self_attn.o_proj.weight": [3584, 3584]}
        for part, size in (("q", 3584), ("k", 512), ("v", 512)):
            part = f"{layer}self_attn.{part}_proj"
            shapes |= {f"{part}.weight": [size, 3584], f"{part}.bias": [size]}
    for n in range(26):
        layer = f"{TOWER}encoder.layers.{n}."
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"):
            shapes |= {f"{layer}{part}.weight": [1152, 1152], f"{layer}{part}.bias": [1152]}
        for part in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{part}.weight": [1152], f"{layer}{part}.bias": [1152]}
        shapes |= {f"{layer}mlp.fc1.weight": [4304, 1152], f"{layer}mlp.fc1.bias": [4304]}
        shapes |= {f"{layer}mlp.fc2.weight": [1152, 4304], f"{layer}mlp.fc2.bias": [1152]}
    return shapes


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("good"), SHAPES["bilinear"])


@pytest.fixture
def folder(good, tmp_path):
    """A copy of a good checkpoint, to be spoilt."""
    return shutil.copytree(good, tmp_path / "model")


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        VideoLLM.load(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("pool_mode", "positions", "columns"), [("bilinear", 210, 15), ("average", 182, 14)])
def test_published_shapes_and_names(tmp_path, pool_mode, positions, columns):
    source = Checkpoint("7b", tmp_path, {**PUBLISHED, "mm_spatial_pool_mode": pool_mode})
    sizes = LlavaVideo.sizes(source)
    assert (sizes.frame_size, sizes.tokens_per_frame, sizes.num_layers) == (FixedSize(384, 384), positions, 28)
    assert (sizes.hidden_size, sizes.max_positions) == (3584, 32768)
    with torch.device("meta"):
        model = LlavaVideoModel(LlavaVideoConfig.read(source))
    assert {name: list(weight.shape) for name, weight in model.named_parameters()} == published_shapes()
    family = LlavaVideo(model, None, None)
    grid = family.grid(64)
    assert (grid.tokens, grid.columns) == (64 * positions, columns)
    assert grid.constants == tuple(range(columns - 1, positions, columns))
    shape = family.decoder.shape
    assert (shape.hidden, shape.heads, shape.kv_heads, shape.head_size, shape.ffn) == (3584, 28, 4, 128, 18944)
    assert family.patches(torch.empty(1, 3, 384, 384, device="meta")) == 729


def test_the_language_model_is_rotated_as_published(tmp_path):
    text = LlavaVideoConfig.read(Checkpoint("7b", tmp_path, PUBLISHED)).text
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    assert (text.rms_norm_eps, text.hidden_act) == (1e-6, "silu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_newline_position": "one_token"}, "mm_newline_position 'one_token' is not supported; supported: 'grid'"),
        ({"mm_newline_position": "frame"}, "mm_newline_position 'frame'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type 'mlp3x_gelu'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type 'flat'"),
        ({"mm_spatial_pool_mode": "max"}, "mm_spatial_pool_mode 'max' .*'bilinear', 'average'"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride 4"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer -1"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type 'perceiver' is not supported; supported: none"),
        ({"add_faster_video": True}, "add_faster_video True"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, "sliding window"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"num_hidden_layers": "many"}, r"config\.json"),
        ({"mm_hidden_size": 1152}, "mm_hidden_size 1152 is not the hidden size 32"),
        ({"vision_config": None}, "sizes of mm_vision_tower 'someone/siglip-of-their-own' are unknown"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "are unknown; known: siglip-so400m-patch14-384"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, r"config\.json"),
    ],
)
def test_configs_of_another_forward_pass_are_refused(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    refused(folder, message)


def test_a_tower_of_other_sizes_than_its_weights_is_refused(folder):
    edit_json(folder / "config.json", mm_vision_tower="google/siglip-so400m-patch14-384", mm_hidden_size=1152)
    refused(folder, r"weight model\.\S+ has shape \[.*the model wants \[.*1152")


def test_the_towers_last_layer_is_not_part_of_the_model(folder):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit_json(folder / "config.json", vision_config={**vision, "num_hidden_layers": 2})
    refused(folder, r"encoder\.layers\.1\.\S+ is not part of the model \(and 15 more\)")


def test_a_tied_model_has_no_weights_for_the_output(tmp_path):
    folder = write_checkpoint(tmp_path, SHAPES["even-grid-tied"])
    decoder = VideoLLM.load(folder, device="cpu")._family._model
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": torch.zeros(262, 64)}, folder / "model.safetensors")
    refused(folder, "lm_head.weight is not part of the model")


def test_an_index_may_not_lead_out_of_the_folder(folder):
    name = "model-00001-of-00003.safetensors"
    shutil.move(folder / name, folder.parent / name)
    index = (folder / "model.safetensors.index.json").read_text()
    (folder / "model.safetensors.index.json").write_text(index.replace(name, f"../{name}"))
    refused(folder, "there is no such file")


def test_frames_become_what_siglip_was_trained_on(good):
    """There is no preprocessor_config.json in the published folder."""
    color = torch.tensor([0, 255, 255], dtype=torch.uint8)
    pixels = VideoLLM.load(good, device="cpu")._family.preprocess(color.expand(1, 40, 56, 3))
    assert pixels.shape == (1, 3, 35, 35)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-1.0, 1.0, 1.0])


def test_a_processors_own_settings_come_first(folder):
    settings = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "size": {"height": 35, "width": 35}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    pixels = VideoLLM.load(folder, device="cpu")._family.preprocess(torch.zeros(1, 40, 56, 3, dtype=torch.uint8))
    assert (pixels == 0).all()
    edit_json(folder / "preprocessor_config.json", size={"height": 64, "width": 64})
    refused(folder, "64x64 frames, the vision tower takes 35x35")


@pytest.mark.parametrize("template", ["{{ messages[0]['role'] }}", CHAT_TEMPLATE * 2])
def test_a_template_that_does_not_show_the_message_once_is_refused(folder, template):
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, r"puts \d videos into the prompt instead of 1")


def test_the_dtype_is_that_asked_for(good):
    model = VideoLLM.load(good, device="cpu", dtype="bfloat16")
    assert {weight.dtype for weight in model._family._model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in model._family._model.parameters())


def test_info_is_known_without_the_weights(good, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "load_weights", None)
    info = model_info(str(good), device="cpu")
    assert info.architecture == "LlavaQwenForCausalLM"
    assert (info.default_frames, info.frame_size, info.tokens_per_frame) == (64, FixedSize(35, 35), 20)
    assert (info.num_layers, info.hidden_size, info.max_positions) == (8, 64, 4096)
