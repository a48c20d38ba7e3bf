"""Quantized weights: smaller, nearly as exact, and refused with the reason where they cannot work."""

import copy
import importlib.util

import pytest
import torch

from pipeline.engine import ModelError, Request, VideoLLM, model_info, quantization
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.memory import weight_bytes
from pipeline.engine.weight_sizes import weight_file_bytes
from pruning import PruningConfig
from tests.engine.videos import make_video

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def load(folder, name):
    return VideoLLM.load(folder, device="cpu", dtype="float32", quantization=name)


@pytest.fixture(scope="module")
def small(grouped_folder):
    return load(grouped_folder, "int8")


def prompts():
    frames = make_video(4)
    return [
        Request(frames=frames, prompt=prompt, max_new_tokens=8, video_key="v") for prompt in ("what", "where is it")
    ]


@needs_torchao
def test_int8_weights_are_those_of_the_decoder_s_linears_alone(small, llm):
    quantized = {
        name for name, weight in small._family._model.named_parameters() if hasattr(weight, "__tensor_flatten__")
    }
    assert len(quantized) == 7 * small.shape.layers
    assert all("language_model.layers." in name and "norm" not in name for name in quantized)
    for name, weight in llm._family._model.named_parameters():
        if name not in quantized:
            assert torch.equal(weight, small._family._model.get_parameter(name))


@needs_torchao
def test_int8_weights_err_by_half_a_step_of_their_row_at_most(small, llm):
    for exact, rounded in zip(llm._family.decoder.layers, small._family.decoder.layers, strict=True):
        weight = exact.mlp.down_proj.weight
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        assert ((rounded.mlp.down_proj.weight.dequantize() - weight).abs() <= 0.51 * step).all()


@needs_torchao
@pytest.mark.parametrize("rows", [1, 8, 1000])
def test_an_int8_mlp_is_the_exact_one_within_two_percent(small, llm, rows):
    hidden = torch.randn(rows, llm.shape.hidden, generator=torch.Generator().manual_seed(0))
    added, exact = (model._family.decoder.add_mlp(1, hidden) - hidden for model in (small, llm))
    assert 0 < (added - exact).norm() < 0.02 * exact.norm()


@needs_torchao
def test_an_int8_model_answers_alone_as_in_a_batch(small):
    pruning = PruningConfig(retention=0.5)
    together = [answer.token_ids for answer in small.answer(prompts(), pruning)]
    assert [small.answer([request], pruning)[0].token_ids for request in prompts()] == together
    assert all(together)


@needs_torchao
def test_int8_weights_take_the_bytes_that_the_headers_foretell(small, grouped_folder, llm):
    model = small._family._model
    loaded = weight_bytes(model) - sum(buffer.nbytes for buffer in model.buffers())
    assert weight_file_bytes(Checkpoint.open(grouped_folder), torch.float32, "int8") == loaded
    assert weight_bytes(small._family.decoder.layers[0]) < 0.3 * weight_bytes(llm._family.decoder.layers[0])


@needs_torchao
def test_weights_quantized_in_inference_mode_can_be_copied_and_moved(grouped_folder):
    with torch.inference_mode():
        model = load(grouped_folder, "int8")
    layer = copy.deepcopy(model._family.decoder.layers[0])
    assert not layer.mlp.up_proj.weight.is_inference()
    assert layer.to("meta").mlp.up_proj.weight.device.type == "meta"
    assert model._family.decoder.layers[0].mlp.up_proj.weight.device.type == "cpu"


@needs_torchao
def test_the_description_says_how_the_weights_are_kept(small, llm, grouped_folder):
    assert llm.info.quantization == "none"
    assert small.info.quantization == "int8"
    assert model_info(str(grouped_folder), device="cpu", quantization="int8") == small.info


def test_an_unknown_quantization_names_the_known_ones(grouped_folder):
    with pytest.raises(ModelError, match=r"quantization 'int3' is not one of none, int8, fp8$"):
        load(grouped_folder, "int3")


def test_without_torchao_quantization_is_refused_and_none_is_not(grouped_folder, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"quantization 'int8' needs torchao, which is not installed$"):
        load(grouped_folder, "int8")
    quantization.check_quantization("none", torch.float32, CPU)


@needs_torchao
def test_fp8_is_refused_on_the_cpu(grouped_folder):
    with pytest.raises(ModelError, match=r"quantization 'fp8' needs a CUDA device, not cpu$"):
        load(grouped_folder, "fp8")


@needs_torchao
def test_fp8_needs_a_gpu_that_multiplies_float8_and_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ModelError, match=r"needs a GPU of compute capability 8\.9, this one has 8\.0$"):
        quantization.check_quantization("fp8", torch.bfloat16, CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ModelError, match=r"needs dtype bfloat16, not float16$"):
        quantization.check_quantization("fp8", torch.float16, CUDA)
    quantization.check_quantization("fp8", torch.bfloat16, CUDA)


@pytest.mark.parametrize(
    "key",
    [
        "model.language_model.layers.3.self_attn.q_proj.weight",
        "language_model.model.layers.27.mlp.down_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
    ],
)
def test_a_decoder_s_linear_is_known_by_its_name_in_every_layout(key):
    assert quantization.quantized_bytes(key, [8, 32], "fp8") == 8 * 32 + 8 * 4
    assert quantization.quantized_bytes(key, [8, 32], "none") is None


@pytest.mark.parametrize(
    "key",
    [
        "model.vision_tower.encoder.layers.3.self_attn.q_proj.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.3.self_attn.v_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.input_layernorm.weight",
        "lm_head.weight",
        "model.embed_tokens.weight",
    ],
)
def test_other_weights_stay_as_they_are(key):
    assert quantization.quantized_bytes(key, [8, 32], "int8") is None
