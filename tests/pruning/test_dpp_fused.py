"""The Triton kernel against the torch path: interpreted and compiled where there is no GPU, run where there is one."""

import importlib.util
from pathlib import Path

import pytest
import torch

import pruning.dpp
from pruning.dpp_fused import can_fuse
from tests.pruning.test_dpp import features, gram
from tests.scripts import run_script

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_interpreted_it_picks_the_same():
    done = run_script(HERE / "fused_under_interpreter.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same picks\n"


@needs_triton
def test_it_compiles_for_gpus_of_three_generations():
    done = run_script(HERE / "fused_for_gpus.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["80", "90", "100"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_picks_the_same(monkeypatch):
    kernel = gram(features(4, 600, 900, 0, torch.float32)).cuda()
    assert can_fuse(kernel)
    fused = pruning.dpp.greedy_map(kernel, [500, 400, 300, 7], [600, 500, 400, 300])
    monkeypatch.setattr(pruning.dpp, "can_fuse", lambda kernel: False)
    assert torch.equal(fused, pruning.dpp.greedy_map(kernel, [500, 400, 300, 7], [600, 500, 400, 300]))


def test_a_cpu_takes_the_torch_path():
    assert not can_fuse(torch.eye(3).unsqueeze(0))
