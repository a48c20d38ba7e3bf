"""Which answers two jobs share: a short hash of everything that changes an answer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.config import BudgetConfig, JobConfig, VideoConfig
from pipeline.prompts import PROMPT_FORMAT

# Raised when the pipeline itself starts to answer the same config differently (other sampling of frames, say).
_PIPELINE_VERSION = 2  # 2: frames by their timestamps, turned upright, pixels made square


def answer_settings(config: JobConfig, model_hash: str) -> dict[str, Any]:
    """What the fingerprint covers: task, frames, model content and number formats, prompts, sampling, pruning, budget.

    Left out: names and places, the cluster, time limits, retries, the model's source, whose content
    hash stands for it, and where pruning options came from: a preset or a calibration counts by
    the options that `pipeline.resolve` made of it. `model.max_positions` decides which videos are
    answered at all and never what an answer says: raised, it adds answers to rows that failed.
    """
    return {
        "version": _PIPELINE_VERSION,
        "prompt_format": PROMPT_FORMAT,
        "task": config.task,
        "video": _video_settings(config.video),
        "model": {"hash": model_hash, "dtype": config.model.dtype, "quantization": config.model.quantization},
        "generation": config.generation.model_dump(mode="json"),
        "pruning": config.pruning.model_dump(mode="json", exclude={"retention", "preset", "calibration"}),
        "budget": _requested(config.budget),
    }


def _requested(budget: BudgetConfig) -> dict[str, Any]:
    """What was asked for, never what a run made of it; a price only where it decides how much is bought."""
    return budget.model_dump(mode="json", exclude=set() if budget.usd is not None else {"usd_per_gpu_hour"})


def _video_settings(video: VideoConfig) -> dict[str, Any]:
    """What decides which frames are seen, and how they look; the rate counts where it is used."""
    names = {"frames", "policy", "backend"} | ({"fps"} if video.policy == "fps" else set())
    return video.model_dump(mode="json", include=names)


def fingerprint(config: JobConfig, model_hash: str) -> str:
    """12 hexadecimal digits over `answer_settings`, whatever the order of keys in the job file."""
    text = json.dumps(answer_settings(config, model_hash), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
