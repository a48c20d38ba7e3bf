"""The Ray cluster that a run uses: the one it is pointed at, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Before Ray is imported, as Ray reads it then. What the user has set stays.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a video archive does not phone home

import ray

from pipeline.config import JobConfig
from pipeline.errors import ClusterError, UserError, one_line
from pipeline.graph import Pools, cpus_per_actor


@contextmanager
def cluster() -> Iterator[None]:
    """Connect to Ray for the length of a run. Raises ClusterError if there is no connecting.

    A connection that the caller has opened is used and left open. `RAY_ADDRESS`, which
    `ray job submit` sets, names an existing cluster; without it one is started on this machine,
    without a dashboard, and stopped at the end.
    """
    if ray.is_initialized():
        yield
        return
    try:
        _connect(os.environ.get("RAY_ADDRESS"))
    except (ConnectionError, OSError, RuntimeError, ValueError, TimeoutError) as error:
        raise ClusterError(f"no Ray cluster: {one_line(str(error))}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    # Our own display shows the run; what workers print stays in Ray's log files.
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        ray.init(address="auto", **quiet)
    else:
        ray.init(address="local", include_dashboard=False, **quiet)


def choose_pools(config: JobConfig) -> Pools:
    """How the job's actors share the connected cluster. UserError where it has no GPU that the job asks for."""
    resources = ray.cluster_resources()
    wanted = config.cluster
    gpus = wanted.gpus_per_answerer
    if gpus == "auto":
        gpus = 1.0 if resources.get("GPU", 0) >= 1 and config.model.device != "cpu" else 0.0
    if config.model.device == "cuda" and gpus == 0:
        raise UserError("model.device is cuda, but the cluster has no GPU (on one that grows, set gpus_per_answerer)")
    return Pools(
        decoders=wanted.decoders,
        answerers=wanted.answerers,
        batch_size=wanted.batch_size,
        cpus_per_actor=cpus_per_actor(resources.get("CPU", 0), wanted.decoders + wanted.answerers),
        gpus_per_answerer=gpus,
        # More than its share of the cores makes answerers on one machine slow each other down.
        threads_per_answerer=max(1, int(resources.get("CPU", 1) // wanted.answerers)),
        retries=config.failures.retries,
    )
