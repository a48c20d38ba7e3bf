"""The Ray cluster that a run uses: the one it is pointed at, or one of its own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import ray

from pipeline.config import JobConfig
from pipeline.doctor.cluster import check_ray_address
from pipeline.errors import ClusterError, UserError, one_line
from pipeline.pools import Pools, fitted, most

_CORE_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"


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
    """Join the cluster at `address`, or start one. Our own display shows the run; Ray keeps to its log files."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)
    if address:
        check_ray_address(address)  # again: planning may have taken hours, and Ray itself would end the process
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with _quiet_core():
        if address:
            ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(address="local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    # Ray puts a handler of its own there, which aborts the process before it could hand on the output's lease.
    if on_sigterm is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Keep Ray's C++ side, in a driver that connects in this block, from printing to stderr.

    It warns of every actor pool that Ray Data makes. Its level comes from the environment, and that
    it was found there is itself printed: hence the redirection. Failures are raised, not printed.
    """
    level = os.environ.get(_CORE_LOG_LEVEL)
    os.environ.setdefault(_CORE_LOG_LEVEL, "fatal")
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
        if level is None:
            del os.environ[_CORE_LOG_LEVEL]


def choose_pools(config: JobConfig) -> Pools:
    """How the job's actors share the connected cluster. UserError where it has no GPU that the job asks for."""
    resources = ray.cluster_resources()
    wanted = config.cluster
    gpus = wanted.gpus_per_answerer
    if gpus == "auto":
        gpus = 1.0 if resources.get("GPU", 0) >= 1 and config.model.device != "cpu" else 0.0
    if config.model.device == "cuda" and gpus == 0:
        raise UserError("model.device is cuda, but the cluster has no GPU (on one that grows, set gpus_per_answerer)")
    pools = Pools(
        decoders=wanted.decoders,
        answerers=wanted.answerers,
        batch_size=wanted.batch_size,
        gpus_per_answerer=gpus,
        # One core stays with the decoders; answerers of one machine that want all the others fight.
        threads_per_answerer=max(1, int(resources.get("CPU", 1) - 1) // most(wanted.answerers)),
        retries=config.failures.retries,
    )
    return fitted(pools)
