"""Run by test_decode_attention_triton.py in a process of its own: compile the kernels, which needs no GPU."""

import math

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from pipeline.engine.decode_attention_triton import _attend, _merge, block_size

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def built(kernel, types, constants, capability):
    signature = types | dict.fromkeys(constants, "constexpr")
    # what a launch finds out by itself: the addresses of whole tensors are multiples of 16
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4, "num_stages": 2})


CASES = [
    (80, torch.bfloat16, 7, 128),
    (80, torch.float32, 3, 64),
    (90, torch.bfloat16, 7, 128),
    (90, torch.float16, 6, 20),
    (100, torch.bfloat16, 7, 128),
]
for capability, dtype, group, head_size in CASES:
    tensor = f"*{NAMES[dtype]}"
    width = max(32, head_size)
    types = dict.fromkeys(("query", "key", "value"), tensor)
    types |= dict.fromkeys(("key_pointers", "value_pointers", "slots", "lengths"), "*i64")
    types |= {"partial": "*fp32", "log_sums": "*fp32", "scale": "fp32"}
    sizes = {"GROUP": group, "HEAD_SIZE": head_size, "PADDED_GROUP": 16, "WIDTH": width}
    tile = {"BLOCK": block_size(dtype, width), "ALIGNMENT": math.gcd(16, head_size * dtype.itemsize)}
    attend = built(_attend, types, sizes | tile, capability)
    if head_size in (64, 128):
        assert "cp.async.cg.shared.global" in attend.asm["ptx"], "keys and values come 16 bytes at a time, ahead of use"
    assert attend.metadata.shared < 99 * 1024, "what a processor of the smaller GPUs shares"
    merged = {"partial": "*fp32", "log_sums": "*fp32", "output": tensor}
    assert built(_merge, merged, {"HEAD_SIZE": head_size, "WIDTH": width, "SPLITS": 16}, capability).asm["cubin"]
    print(capability, NAMES[dtype])
