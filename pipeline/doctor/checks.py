"""Which checks there are: of the machine, and of a job.

What a check needs is imported when it runs: a package that is missing or broken is then its finding.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.doctor.check import Check, Finding

if TYPE_CHECKING:
    from pipeline.config import JobConfig

_STORAGE_S = 12.0  # the S3 client's own four tries take about half of it where nobody listens
_LOADING_S = 60.0  # importing torch, on a busy machine or from a slow disk
_INSTALL = "python -m pip install -c constraints.txt -e ."
_S3 = (
    "check the path, AWS_ENDPOINT_URL, and the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY) and their rights to list, read, write and delete there"
)
_LOCAL = "check that the path is right, and that this user may read it (write to it, for an output)"
_MODEL = "name a whole folder in the Hugging Face layout, an s3:// prefix or a hub id that can be reached"
_CLUSTER = (
    "check --address or RAY_ADDRESS, and that the head runs (ray start --head) and lets this machine through; "
    "unset RAY_ADDRESS for a local cluster"
)


def machine_checks(address: str | None, device: str = "auto") -> list[Check]:
    """What any job needs of this machine, of the cluster at `address` and of the `device` that it asks for."""
    return [
        Check("python", _late("software", "look_at_python"), advice=_INSTALL),
        Check("packages", _late("software", "look_at_packages"), advice=_INSTALL),
        Check("device", _late("device", "look_at_device", device), _LOADING_S, _INSTALL),
        Check("codecs", _late("codecs", "look_at_codecs"), advice=_INSTALL),
        Check("decord", _late("codecs", "look_at_decord"), advice=_INSTALL),
        Check("cluster", _late("cluster", "look_at_cluster", address), 20.0, _CLUSTER, is_remote=True),
        Check("disk", _late("machine", "look_at_disks"), advice="see whether each of its folders answers (df -h)"),
        Check("shared memory", _late("machine", "look_at_shared_memory")),
        Check("open files", _late("machine", "look_at_open_files")),
    ]


def job_checks(config: JobConfig) -> list[Check]:
    """What this job needs: its manifest, its output, its model, and the clock of the storage that it speaks to."""
    remote = next((uri for uri in (config.output, config.manifest) if _is_s3(uri)), None)
    clock = [_storage_check("clock", "look_at_clock", remote)] if remote is not None else []
    source = config.model.source
    return [
        _storage_check("manifest", "look_at_manifest", config.manifest),
        _storage_check("output", "look_at_output", config.output),
        *clock,
        Check(
            "model",
            _late("model", "look_at_model", source),
            _LOADING_S,
            _S3 if _is_s3(source) else _MODEL,
            is_remote=_is_s3(source),
        ),
    ]


def _storage_check(name: str, function: str, uri: str) -> Check:
    look = _late("places", function, uri)
    return Check(name, look, _STORAGE_S, _S3 if _is_s3(uri) else _LOCAL, is_remote=_is_s3(uri))


def _is_s3(uri: str) -> bool:
    return uri.lower().startswith("s3:")


def _late(module: str, function: str, *given: Any) -> Callable[[], Finding]:
    """A call of a function of this package that imports its module first."""

    def look() -> Finding:
        found: Finding = getattr(import_module(f"pipeline.doctor.{module}"), function)(*given)
        return found

    return look
