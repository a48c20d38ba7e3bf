"""Smaller weights for the language model's linear layers, by torchao.

- int8: weights in 8 bits, one scale an output row; activations stay as they are. It saves memory, not time: each
  call widens its weights anew, which a prefill does not feel and a decode step of few rows does.
  torchao's other form, 8-bit activations too, more than doubles the error, and CUDA's integer matmul
  wants more than 16 rows, which a decode step seldom has.
- fp8: weights and, as they come, activations in float8 (e4m3), one scale a row each, so that the tensor cores
  multiply at twice the rate of bfloat16. The weight-only form would turn the weights back into
  bfloat16 through float32 in every call. It needs a GPU of compute capability 8.9 or more, and bfloat16.

Embeddings, output head, norms, biases and the vision tower stay as they are.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from pipeline.engine.errors import ModelError

if TYPE_CHECKING:
    from pipeline.engine.decoder import Decoder

QuantizationName = Literal["none", "int8", "fp8"]

_FP8_CAPABILITY = (8, 9)
_FP8_MULTIPLE = 16  # what a float8 matmul wants of both sides; torchao leaves other weights as they are, silently

# Weights that `apply` changes, by their names in the layouts of all families: vision towers name theirs alike.
_LINEAR = re.compile(r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")
_VISION = re.compile(r"vision|visual")


def check_quantization(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ModelError, in one line with the reason, unless `apply` works for activations of `dtype` on `device`."""
    if name not in get_args(QuantizationName):
        raise ModelError(f"quantization {name!r} is not one of {', '.join(get_args(QuantizationName))}")
    if name == "none":
        return
    if find_spec("torchao") is None:
        raise ModelError(f"quantization {name!r} needs torchao, which is not installed")
    if name == "fp8":
        _check_fp8(dtype, device)


def apply(decoder: Decoder, name: str, device: torch.device) -> None:
    """Move a decoder's layers to `device` and quantize their linears' weights in place, one layer after the other.

    Layers that wait on the CPU keep the peak on the device at the quantized size plus one layer. Raises
    ModelError as `check_quantization` does, and for sizes that the format does not take.
    """
    if name == "none":
        return
    # Inside inference mode the new weights would be inference tensors, which nothing may change or move later.
    with torch.inference_mode(False), torch.no_grad():
        config: Any = None
        for layer in decoder.layers:
            layer.to(device)
            linears = [(path, module) for path, module in layer.named_modules() if isinstance(module, nn.Linear)]
            if config is None:
                check_quantization(name, linears[0][1].weight.dtype, device)
                config = _config(name)
            for path, linear in linears:
                if name == "fp8" and any(side % _FP8_MULTIPLE for side in linear.weight.shape):
                    shape = list(linear.weight.shape)
                    raise ModelError(f"quantization 'fp8' takes multiples of {_FP8_MULTIPLE}, {path} has shape {shape}")
            _quantize(layer, config)


def quantized_bytes(key: str, shape: list[int], name: str) -> int | None:
    """Bytes of a checkpoint's weight once `apply` has run; None if it leaves that weight as it is.

    `key` is the weight's name in any family's layout.
    """
    if name == "none" or not _LINEAR.search(key) or _VISION.search(key):
        return None
    rows, columns = shape
    # a scale of 4 bytes a row; torchao keeps a zero point beside it for int8
    return rows * columns + rows * (5 if name == "int8" else 4)


def _check_fp8(dtype: torch.dtype, device: torch.device) -> None:
    if device.type != "cuda":
        raise ModelError(f"quantization 'fp8' needs a CUDA device, not {device.type}")
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        found, needed = (".".join(map(str, version)) for version in (capability, _FP8_CAPABILITY))
        raise ModelError(f"quantization 'fp8' needs a GPU of compute capability {needed}, this one has {found}")
    if dtype != torch.bfloat16:
        raise ModelError(f"quantization 'fp8' needs dtype bfloat16, not {str(dtype).removeprefix('torch.')}")


def _config(name: str) -> Any:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, PerRow

    # Inductor's settings are the process's, and so is the float32 matmul precision that torchao would set with them.
    if name == "int8":
        return Int8WeightOnlyConfig(granularity=PerRow(), set_inductor_config=False)
    return Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), set_inductor_config=False)


def _quantize(layer: nn.Module, config: Any) -> None:
    from torchao.quantization import quantize_

    quantize_(layer, config)
