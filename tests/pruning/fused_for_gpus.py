"""Run by test_dpp_fused.py in a process of its own: compile the Triton kernel to machine code, which needs no GPU."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from pruning.dpp import PANEL
from pruning.dpp_fused import _panel

pointers = {"left": "*fp32", "gains": "*fp32", "stop": "*fp32", "wanted": "*i64", "panel": "*fp32"}
sizes = {"first": "i32", "n": "i32", "STEPS": "constexpr", "WIDTH": "constexpr", "LINES": "constexpr"}
for capability in (80, 90, 100):
    for width, lines, warps in ((16, 16, 4), (1024, 4, 8), (16384, 1, 32)):
        source = ASTSource(_panel, pointers | sizes, {"STEPS": PANEL, "WIDTH": width, "LINES": lines})
        built = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert built.asm["cubin"]
    print(capability)
