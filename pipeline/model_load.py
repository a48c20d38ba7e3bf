"""The job's model, the same one everywhere: described on the driver, loaded in each answerer."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config import ModelConfig
from pipeline.errors import UserError, one_line
from pipeline.model_fetch import local_model, model_version
from pipeline.progress import OnProgress, Progress

if TYPE_CHECKING:
    from pipeline.engine import ModelInfo, VideoLLM


@dataclass(frozen=True)
class JobModel:
    """What the driver found: `settings` read the same in any working directory, `version` pins a remote model."""

    settings: ModelConfig
    version: str | None
    info: ModelInfo


def find_model(settings: ModelConfig, report: OnProgress) -> JobModel:
    """Describe the model, fetched to this machine where it lies elsewhere. Raises UserError or ClusterError."""
    from pipeline.engine import ModelError, model_info  # late: a missing manifest is told before this has loaded

    version = model_version(settings.source)
    if version is not None:
        report(Progress("fetch"))
    folder = local_model(settings.source, version)
    # On the CPU, whatever the job asks for: the driver's machine need not have the workers' GPU.
    try:
        quantization = settings.quantization if settings.device == "cpu" else "none"
        info = model_info(str(folder), "cpu", settings.dtype, quantization)
    except ModelError as error:
        raise model_error(str(error)) from error
    source = settings.source if version is not None else str(folder)
    return JobModel(settings.model_copy(update={"source": source}), version, info)


def load_engine(model: JobModel, device: str, threads: int) -> VideoLLM:
    """The model on a worker's `device`, with `threads` cores for what it does on the CPU.

    Raises ModelError, also where this machine has another model under the same name; UserError and
    ClusterError as `local_model`.
    """
    import torch

    from pipeline.engine import ModelError, VideoLLM

    torch.set_num_threads(min(threads, len(os.sched_getaffinity(0))))
    settings, expected = model.settings, model.info.model_hash
    engine = VideoLLM.load(
        local_model(settings.source, model.version),
        device=device,
        dtype=settings.dtype,
        quantization=settings.quantization,
        max_positions=settings.max_positions,
    )
    if engine.info.model_hash != expected:
        raise ModelError(
            f"{settings.source}: another model on this machine ({engine.info.model_hash[:12]}) than on the one "
            f"that started the job ({expected[:12]})"
        )
    return engine


def model_error(message: str) -> UserError:
    """A ModelError's message as one that begins with the key to change."""
    key = "model." if re.match(r"(device|dtype|quantization|max_positions) ", message) else "model.source: "
    return UserError(f"{key}{one_line(message)}")
