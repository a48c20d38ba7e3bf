"""What must be right before a job's actors start, beyond what its first steps find out by themselves."""

from __future__ import annotations

import os

from pipeline.config import JobConfig
from pipeline.doctor.check import Finding
from pipeline.doctor.cluster import check_ray_address
from pipeline.doctor.machine import look_at_disks
from pipeline.doctor.model import check_files, local_folder
from pipeline.doctor.places import check_replacement
from pipeline.errors import UserError
from pipeline.model_load import JobModel


def check_job(config: JobConfig, model: JobModel) -> None:
    """Refuse a job that would fail later, in a second or so: after hours of planning, or in each of its actors.

    Whether the cluster's address answers, whether there is room for temporary files, whether the weights
    are whole, and whether the storage can keep two runs apart. What `run_job` looks at anyway is left to it: the
    manifest, the right to write, the model's config and the lease's own first write. Raises UserError or ClusterError.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        check_ray_address(address)
    _refuse(look_at_disks())
    check_files(local_folder(model.settings.source, model.version))
    check_replacement(config.output)


def _refuse(finding: Finding) -> None:
    if finding.status == "fail":
        raise UserError(f"{finding.found}: {finding.advice}")
