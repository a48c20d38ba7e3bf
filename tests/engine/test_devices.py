"""No operation mixes host and accelerator tensors: shown on the meta device, which computes shapes only."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.engine import Request, VideoLLM, decode, sampling
from pruning import PruningConfig
from tests.engine.videos import make_video


class DevicesOfOperations(TorchDispatchMode):
    """Collects operations whose tensor arguments lie on different devices; plain copies are what `to` does."""

    def __init__(self):
        super().__init__()
        self.mixed = set()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        self.seen |= devices
        if len(devices) > 1 and function is not torch.ops.aten._to_copy.default:
            self.mixed.add(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["none", "uniform", "random"])
def test_all_stages_stay_on_the_models_device(grouped_folder, monkeypatch, method):
    def choose(logits, samplers):
        assert logits.device.type == "meta"
        assert sampling._sample(logits, samplers).device.type == "meta"
        return [5] * len(samplers)  # numbers cannot be read back from this device

    llm = VideoLLM.load(grouped_folder, device="cpu", dtype="bfloat16")
    memory = llm._plan_memory()
    monkeypatch.setattr(llm, "_plan_memory", lambda: memory)  # nobody knows what is free on this device
    llm._family._model.to("meta")
    monkeypatch.setattr(decode, "choose_tokens", choose)
    requests = [Request(make_video(n), "what", max_new_tokens=n, temperature=1.0) for n in (3, 5)]
    with DevicesOfOperations() as devices:
        answers = llm.answer(requests, PruningConfig(method=method, retention=0.4))
    assert [len(answer.token_ids) for answer in answers] == [3, 5]
    assert "meta" in devices.seen
    assert devices.mixed == set()
