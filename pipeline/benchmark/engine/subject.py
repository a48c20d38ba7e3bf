"""What is measured: one model, as the engine runs it and as transformers does, over the same weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.benchmark.engine.chat import FixedChat
from pipeline.benchmark.engine.shapes import Shape
from pipeline.benchmark.engine.weights import fill_randomly
from pipeline.engine import ModelError, VideoLLM
from pipeline.engine.checkpoint import Checkpoint
from pipeline.engine.families import Family, family_of
from pipeline.engine.memory import MemoryPlan, free_bytes, gibibytes
from pruning.schedule import author_shape, plan_stages

_SEED = 0


@dataclass(frozen=True)
class Subject:
    """A loaded model and the video that it is shown.

    `model` is the module whose parts the family borrows; `weights` says where its numbers come from.
    """

    shape: Shape
    weights: str
    family: Family
    model: Any
    llm: VideoLLM

    @classmethod
    def load(cls, shape: Shape, source: str | None, dtype: torch.dtype, device: torch.device) -> Subject:
        """Load `source` (a folder or builtin:…), or build the shape with random weights where it is None.

        ModelError if the folder cannot be read, or if weights of this shape and one unpruned video
        do not fit the device.
        """
        if source is None:
            check_fits(shape, dtype, device)
            family: Any = shape.build(dtype, device)
            fill_randomly(family._model, _SEED)
            name = f"{shape.name}, random weights"
            return cls(shape, "random", family, family._model, VideoLLM(_no_checkpoint(name), family))
        checkpoint = Checkpoint.open(source)
        loaded: Any = family_of(checkpoint).load(checkpoint, dtype, device)
        family = type(loaded)(loaded._model, FixedChat(), loaded._preprocessor)
        return cls(shape, checkpoint.name, family, family._model, VideoLLM(checkpoint, family))

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.family.decoder.device

    def tokens(self, frames: int) -> int:
        """N, the video tokens of that many frames before any pruning."""
        return self.family.grid(frames, self.shape.frame_size).tokens

    def read_bytes(self) -> int:
        """Bytes of weights that a decoding step reads: decoder layers and output head, no table of embeddings."""
        modules = (*self.family.decoder.layers, self.model.lm_head)
        return sum(weight.nbytes for module in modules for weight in module.parameters())


def check_fits(shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ModelError, with the sizes, if the shape's weights and one unpruned video do not fit the device."""
    family: Any = shape.build(dtype, torch.device("meta"))
    decoder = family.decoder
    weights = sum(weight.nbytes for weight in family._model.parameters())
    free = free_bytes(device)
    memory = MemoryPlan.make(decoder.shape, decoder.vocabulary, dtype, device, max(0, free - weights))
    tokens = family.grid(shape.frames, shape.frame_size).tokens
    plan = plan_stages(tokens, decoder.shape.layers, 1.0, author_shape(1.0))
    request = memory.sequence_peak_bytes(plan, family.tokenize("").length, 1)
    if weights + request > free:
        raise ModelError(
            f"{shape.name} needs {gibibytes(weights)} for its weights in {str(dtype).removeprefix('torch.')} and "
            f"{gibibytes(request)} for one video of {shape.frames} frames, the {device.type} has {gibibytes(free)} free"
        )


def _no_checkpoint(name: str) -> Checkpoint:
    """A checkpoint without a folder: nothing was read, and there is no calibration beside the weights."""
    return Checkpoint(name, Path(name), {})
