"""A job's pruning on its model, settled before any worker starts: every option known, the budget within reach."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.storage import read_bytes
from pruning import UnreachableRetentionError, VideoGrid, make_pruner
from pruning.calibration import CalibrationError, resolve_options

if TYPE_CHECKING:
    from pipeline.engine import ModelInfo


def resolve_pruning(config: JobConfig, model: ModelInfo) -> JobConfig:
    """The job with all pruning options written out, and a budget that is a retention within reach.

    Its dump reproduces the run without the calibration file. Raises UserError naming
    `pruning.calibration` or the budget's key, ClusterError where a calibration on S3 cannot be reached.
    """
    resolved = resolve_method(config, model)
    budget = config.budget
    if budget.is_derived:
        raise UserError(
            f"budget.{budget.key} = {getattr(budget, budget.key):g}: no retention has been chosen for it; "
            "python -m jobs.plan says which one meets it, to be given as budget.retention"
        )
    _check_budget(resolved, model)
    return resolved


def resolve_method(config: JobConfig, model: ModelInfo) -> JobConfig:
    """The job with all pruning options written out and no preset or calibration left to look up.

    Errors as `resolve_pruning`, but for the budget, at which it does not look.
    """
    try:
        pruning = resolve_options(config.pruning, model.calibration, model.name, lambda: model.model_hash, _read)
    except CalibrationError as error:
        raise UserError(f"pruning.calibration = {config.pruning.calibration!r}: {error}") from error
    return config.model_copy(update={"pruning": pruning})


def _read(uri: str) -> bytes:
    try:
        return read_bytes(uri)
    except UserError as error:
        raise CalibrationError(str(error)) from error


def _check_budget(config: JobConfig, model: ModelInfo) -> None:
    """Raise UserError if no plan of the method keeps so little of a video of the usual length and the largest grid.

    A video of fewer tokens has a larger least share: where it is out of reach, the video gets an error row.
    """
    frames = model.default_frames if config.video.frames == "auto" else config.video.frames
    grid = VideoGrid(math.ceil(frames / model.frames_per_step), model.tokens_per_frame * model.frames_per_step)
    retention = config.pruning.retention
    try:
        make_pruner(config.pruning).plan(grid, model.num_layers, retention)
    except UnreachableRetentionError as error:
        least = math.ceil(error.minimum * 1e4) / 1e4
        raise UserError(
            f"budget.retention = {retention:g} is out of reach for pruning.method {config.pruning.method} on "
            f"{model.name} with its {model.num_layers} layers: a number from {least:g} to 1 is needed"
        ) from error
