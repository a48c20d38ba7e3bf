"""How large a checkpoint's weights will be, from the headers of its files alone."""

from __future__ import annotations

import torch
from safetensors import SafetensorError, safe_open

from pipeline.engine.checkpoint import Checkpoint, one_line
from pipeline.engine.errors import ModelError
from pipeline.engine.memory import free_bytes, gibibytes
from pipeline.engine.quantization import quantized_bytes
from pipeline.engine.weights import weight_files


def check_weights_fit(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantization: str = "none"
) -> None:
    """Raise ModelError, in one line with the sizes, if the weights take more than the device has free.

    Nothing but headers is read. Also raises ModelError for weight files that are absent or damaged.
    """
    needed = weight_file_bytes(checkpoint, dtype, quantization)
    free = free_bytes(device)
    if needed <= free:
        return
    form = str(dtype).removeprefix("torch.") + ("" if quantization == "none" else f" and {quantization}")
    where = "machine" if device.type == "cpu" else f"{device.type} device"
    raise ModelError(
        f"{checkpoint.folder}: needs {gibibytes(needed)} for its weights in {form}, the {where} has "
        f"{gibibytes(free)} free"
    )


def weight_file_bytes(checkpoint: Checkpoint, dtype: torch.dtype, quantization: str = "none") -> int:
    """Bytes of all weights once they are loaded as `dtype` and quantized; ModelError for files that are damaged."""
    total = 0
    for path in weight_files(checkpoint.folder):
        try:
            with safe_open(path, framework="pt") as weights:
                for key in weights.keys():  # noqa: SIM118 (not a dict)
                    shape = list(weights.get_slice(key).get_shape())
                    small = quantized_bytes(key, shape, quantization)
                    total += torch.Size(shape).numel() * dtype.itemsize if small is None else small
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{checkpoint.folder}: the weights cannot be loaded ({one_line(error)})") from error
    return total
