"""A model that is quantized while it is loaded never has its whole weights on the device."""

import pytest
import torch

from pipeline.engine import ModelError, VideoLLM, llm, quantization, weight_sizes
from pipeline.engine.memory import weight_bytes
from tests.engine.checkpoint_families import WRITERS

CPU, DEVICE = torch.device("cpu"), torch.device("meta")  # no accelerator is needed to see who moves when


@pytest.fixture(params=WRITERS)
def folder(request, tmp_path):
    return WRITERS[request.param](tmp_path)


@pytest.fixture
def moves(monkeypatch):
    """Stands in for torchao: halves a layer's linears, and notes what is on the device each time it is called."""
    loaded, seen = [], []

    def apply(decoder, name, device):
        loaded.append(decoder)
        quantization.apply(decoder, name, device)

    def halve(layer, config):
        on_device = [number for number, other in enumerate(loaded[0].layers) if places(other) == {DEVICE.type}]
        seen.append((on_device, loaded[0].device, sum(weight_bytes(loaded[0].layers[n]) for n in on_device)))
        for linear in (module for module in layer.modules() if isinstance(module, torch.nn.Linear)):
            linear.weight = torch.nn.Parameter(linear.weight.to(torch.float16), requires_grad=False)

    monkeypatch.setattr(quantization, "find_spec", lambda name: object())
    monkeypatch.setattr(quantization, "_config", lambda name: None)
    monkeypatch.setattr(quantization, "_quantize", halve)
    monkeypatch.setattr(llm, "quantize", apply)
    monkeypatch.setattr(llm, "choose_device", lambda name: DEVICE)
    return seen


def places(module):
    return {tensor.device.type for tensor in (*module.parameters(), *module.buffers())}


def load(folder):
    return VideoLLM.load(folder, dtype="float32", quantization="int8")


def test_the_device_gets_one_whole_layer_at_a_time_and_the_rest_last(folder, moves):
    model = load(folder)
    layers = model.shape.layers
    assert [on_device for on_device, _, _ in moves] == [list(range(count)) for count in range(1, layers + 1)]
    assert {device for _, device, _ in moves} == {CPU}  # embeddings, and with them all but the layers, wait
    small = weight_bytes(model._family.decoder.layers[0])
    whole = moves[0][2]
    assert small < 0.6 * whole
    assert [held for _, _, held in moves] == [whole + number * small for number in range(layers)]
    assert places(model._family._model) == {DEVICE.type}


def test_without_quantization_a_family_loads_onto_its_device_as_before(folder):
    model = VideoLLM.load(folder, device="cpu", dtype="float32")
    assert places(model._family._model) == {"cpu"}
    before = weight_bytes(model._family._model)
    model._family.to(CPU)
    assert weight_bytes(model._family._model) == before
    model._family.to(DEVICE)
    assert places(model._family._model) == {DEVICE.type}
    assert model._family.decoder.device == DEVICE


def test_the_device_needs_room_for_the_quantized_weights_and_the_machine_for_the_whole_ones(folder, moves, monkeypatch):
    checkpoint = llm.Checkpoint.open(folder)
    whole, small = (weight_sizes.weight_file_bytes(checkpoint, torch.float32, name) for name in ("none", "int8"))
    assert small < 0.8 * whole
    room = {"meta": small, "cpu": whole}
    monkeypatch.setattr(weight_sizes, "free_bytes", lambda device: room[device.type])
    load(folder)
    room["meta"] -= 1
    with pytest.raises(ModelError, match=r"weights in float32 and int8, the meta device has .* free$"):
        load(folder)
    room |= {"meta": small, "cpu": whole - 1}
    with pytest.raises(ModelError, match=r"weights in float32, the machine has .* free$"):
        load(folder)
