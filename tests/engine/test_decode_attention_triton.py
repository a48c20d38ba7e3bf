"""The ragged decode kernels: interpreted and compiled where there is no GPU, run where there is one."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.engine.decode_attention_triton import _num_splits, can_decode_ragged, ragged_decode_attention
from tests.scripts import run_script

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_interpreted_it_attends_as_sdpa():
    done = run_script(HERE / "decode_under_interpreter.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same attention\n"


@needs_triton
def test_it_compiles_for_gpus_of_three_generations():
    done = run_script(HERE / "decode_for_gpus.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["80 bf16", "80 fp32", "90 bf16", "90 fp16", "100 bf16"]


def test_keys_are_split_until_the_device_is_full():
    assert _num_splits(programs=4, processors=132) == 64
    assert _num_splits(programs=64, processors=132) == 8
    assert _num_splits(programs=1024, processors=132) == 1
    assert _num_splits(programs=1, processors=1) == 4


def test_a_cpu_attends_cache_by_cache():
    assert not can_decode_ragged(torch.device("cpu"), torch.bfloat16, 64)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu_it_attends_as_sdpa(dtype):
    device = torch.device("cuda")
    assert can_decode_ragged(device, dtype, 128)
    lengths, heads, kv_heads, head_size = [1, 17, 1000, 40_000], 28, 4, 128
    caches = [torch.randn(2, kv_heads, n + 3, head_size, dtype=dtype, device=device) for n in lengths]
    query = torch.randn(len(lengths), heads, head_size, dtype=dtype, device=device)
    key, value = torch.randn(2, len(lengths), kv_heads, head_size, dtype=dtype, device=device)
    numbers = zip(*([*(part.data_ptr() for part in cache), cache.shape[2]] for cache in caches), strict=True)
    places = [torch.tensor(column, device=device) for column in (*numbers, lengths)]
    attended = ragged_decode_attention(query, key, value, *places)
    for b, (cache, length) in enumerate(zip(caches, lengths, strict=True)):
        assert torch.equal(cache[:, :, length - 1], torch.stack((key[b], value[b])))
        keys, values = cache[:, None, :, :length].float()
        expected = F.scaled_dot_product_attention(query[b][None, :, None].float(), keys, values, enable_gqa=True)
        torch.testing.assert_close(attended[b].float(), expected.flatten(), atol=2e-2, rtol=2e-2)
