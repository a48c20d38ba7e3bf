"""What a model is, readable from its folder without loading the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.errors import ModelError
from pipeline.engine.families import family_of
from pipeline.engine.quantization import QuantizationName, check_quantization
from pipeline.frame_size import FrameSize

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ModelInfo:
    """A model as results and plans record it.

    `model_hash` is the sha256 (hex) over weight, config and tokenizer files. `default_frames` is
    the number of frames that the model was trained for, `frame_size` the size that it scales them to,
    `tokens_per_frame` the video tokens of each at most, `frames_per_step` how many of them become one
    frame of the token grid together, `calibration` the model's own calibration file (None: it has none);
    `quantization` the form of the language model's weights.
    """

    name: str
    model_hash: str
    architecture: str
    dtype: str
    device: str
    default_frames: int
    frame_size: FrameSize
    num_layers: int
    hidden_size: int
    max_positions: int
    tokens_per_frame: int
    calibration: Path | None
    quantization: str = "none"
    frames_per_step: int = 1


def model_info(
    source: str, device: DeviceName = "auto", dtype: DtypeName = "auto", quantization: QuantizationName = "none"
) -> ModelInfo:
    """Describe the model that `VideoLLM.load` would load with the same arguments; ModelError as there.

    Reads the whole folder once, for the hash.
    """
    chosen = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen)
    check_quantization(quantization, chosen_dtype, chosen)
    return describe(Checkpoint.open(source), chosen_dtype, chosen, quantization)


def describe(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantization: str = "none") -> ModelInfo:
    """The description of a checkpoint on a device."""
    family = family_of(checkpoint)
    sizes = family.sizes(checkpoint)
    return ModelInfo(
        name=checkpoint.name,
        model_hash=checkpoint.content_hash(),
        architecture=family.architecture,
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
        default_frames=int(checkpoint.config.get("num_frames") or family.default_num_frames),
        frame_size=sizes.frame_size,
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        max_positions=sizes.max_positions,
        tokens_per_frame=sizes.tokens_per_frame,
        calibration=checkpoint.calibration,
        quantization=quantization,
        frames_per_step=sizes.frames_per_step,
    )


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one; ModelError for an unknown or absent device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ModelError(f"device {name!r} is not one of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch finds no CUDA device")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is float32 on the CPU and bfloat16 on CUDA; ModelError for an unknown name."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    if name not in _DTYPES:
        raise ModelError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
