"""What a model takes on a device: measured by answering a few sampled videos, kept as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from pipeline.config import JobConfig
from pipeline.errors import UserError
from pipeline.storage import read_bytes, write_atomic

if TYPE_CHECKING:
    from pipeline.engine import ModelInfo

_FORMAT = 1


@dataclass(frozen=True)
class Profile:
    """Seconds that a model takes on a device, for jobs of the same method and about the same batch.

    One frame through the vision tower; the prefill of a row, as a part that it always takes and one for each FLOP that
    is computed; pruning a row of n video tokens, `(prune_s_per_token + retention * prune_s_per_kept_token) * n`; one
    generated token of a row, in a batch of `batch_size` videos. `output_tokens` is the mean length of an answer
    in the sample.
    """

    model: str
    model_hash: str
    dtype: str
    device: str
    machine: str
    threads: int
    quantization: str
    pruning_method: str
    batch_size: int
    videos: int
    vision_s_per_frame: float
    prefill_s_per_row: float
    prefill_s_per_flop: float
    prune_s_per_token: float
    prune_s_per_kept_token: float
    generate_s_per_token: float
    output_tokens: float
    format: int = _FORMAT


def save_profile(profile: Profile, uri: str) -> None:
    """Write it as JSON, whole or not at all, to a path or s3://. UserError or ClusterError where that fails."""
    write_atomic(uri, (json.dumps(asdict(profile), indent=2) + "\n").encode())


def load_profile(uri: str, config: JobConfig, model: ModelInfo) -> Profile:
    """The profile in a file that `save_profile` wrote for this model and job.

    Raises UserError where it is none, or one of another model, number format, device or method; ClusterError where
    storage is unreachable.
    """
    try:
        told = json.loads(read_bytes(uri))
        profile = Profile(**{name.name: told[name.name] for name in fields(Profile)})
        known = profile.format == _FORMAT
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{uri} is no profile: python -m jobs.plan --save-profile writes one") from None
    if not known:
        raise UserError(f"{uri} was written by another version of this program: measure a new one")
    check_fits(profile, uri, config, model)
    return profile


def check_fits(profile: Profile, source: str, config: JobConfig, model: ModelInfo) -> None:
    """Raise UserError where a profile, from `source`, is not of this model, number format, device or method."""
    wanted = {
        "model_hash": model.model_hash,
        "quantization": config.model.quantization,
        "pruning_method": config.pruning.method,
    }
    if config.model.dtype != "auto":
        wanted["dtype"] = config.model.dtype
    if config.model.device != "auto":
        wanted["device"] = config.model.device
    elif config.cluster.gpus_per_answerer == 0:
        wanted["device"] = "cpu"
    for name, value in wanted.items():
        found = getattr(profile, name)
        if found != value:
            raise UserError(f"{source} was measured with another {name}: {str(found)[:12]}, this job has {value[:12]}")
