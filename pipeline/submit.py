"""A job made ready for a cluster: its file as it reads there, checked as far as this machine can."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import JobConfig
from pipeline.errors import ClusterError, UserError, scrub
from pipeline.manifest import check_manifest
from pipeline.provenance import code_version
from pipeline.storage import absolute, check_writable, local_path

JOB_FILE = "hieravid-job.yaml"
"""The job file in the working directory that is sent."""


def place_job(config: JobConfig, folder: Path, sent: Collection[str]) -> JobConfig:
    """The job with its local paths as the cluster reads them. `sent` are the files of `folder` that go along.

    Results in the job's own folder would be lost with it: a local output becomes an absolute path, which
    the nodes have to share, and the manifest and calibration then, too, lie where they lie. Otherwise
    those that are sent are read from the working directory.
    """
    is_shared = local_path(config.output) is not None

    def placed(uri: str) -> str:
        path = local_path(uri)
        if path is None or path.is_absolute():
            return uri
        inside = path.absolute().relative_to(folder) if path.absolute().is_relative_to(folder) else None
        return str(inside) if not is_shared and inside and str(inside) in sent else str(path.absolute())

    changes: dict[str, Any] = {"manifest": placed(config.manifest), "output": placed(config.output)}
    if Path(config.model.source).is_dir():  # else it may be a hub id, which looks like a path
        changes["model"] = config.model.model_copy(update={"source": placed(config.model.source)})
    calibration = config.pruning.calibration
    if calibration is not None and Path(calibration).is_file():
        changes["pruning"] = config.pruning.model_copy(update={"calibration": placed(calibration)})
    return config.model_copy(update=changes)


def job_text(config: JobConfig) -> str:
    """The job as a file that `load_config` reads back: what was set, overrides included, and nothing else.

    A default that is written out would win over a model's calibration. Raises UserError where a value
    looks like a credential: whoever sees the cluster's dashboard could read it.
    """
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"pruning"})
    pruning = config.pruning.model_dump(mode="json", exclude_unset=True, exclude={"retention"})
    text = yaml.safe_dump({**values, "pruning": pruning}, sort_keys=False, allow_unicode=True)
    if scrub(text).count("***") > text.count("***"):
        raise UserError(
            "the job holds what looks like a credential: leave it out, and give it to the cluster's own environment"
        )
    return text


def check_storage(config: JobConfig, report: Callable[[str], None]) -> None:
    """Raise unless manifest and output can be used from here; `report` what only the cluster can tell.

    `config` has its paths as they were given: relative ones are of this machine, absolute ones may be of the
    nodes alone. UserError where one is missing, or these credentials may not use it, ClusterError where it
    cannot be reached.
    """
    manifest, output = local_path(config.manifest), local_path(config.output)
    try:
        check_manifest(config.manifest)
    except (UserError, ClusterError) as error:
        if manifest is None or not manifest.is_absolute():
            raise _seen_from_here(error) from error
        report(f"{error} on this machine: the cluster will tell whether it is there")
    if output is None or not output.is_absolute() or output.parent.exists():
        try:
            check_writable(config.output)
        except (UserError, ClusterError) as error:
            raise _seen_from_here(error) from error
    if output is not None:
        report(f"output {absolute(config.output)} is a local folder: all nodes must see it under this path")


def _seen_from_here(error: UserError | ClusterError) -> UserError | ClusterError:
    return type(error)(f"{error} (as seen from here; --no-storage-check leaves it to the cluster)")


def entrypoint(task: str, options: list[str]) -> str:
    """The shell command that the cluster runs in the working directory."""
    return shlex.join(["python", "-m", f"jobs.{task}", "--config", JOB_FILE, *options])


def job_metadata(config: JobConfig, text: str) -> dict[str, str]:
    """What the cluster's job list tells of the job. Nothing secret: a uri with credentials is no valid config."""
    return {
        "name": config.name,
        "task": config.task,
        "manifest": config.manifest,
        "output": config.output,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest()[:12],
        "version": code_version(),
    }
