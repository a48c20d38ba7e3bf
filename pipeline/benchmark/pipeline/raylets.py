"""A real Ray cluster of several nodes, all of them on this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
from ray._common.utils import get_ray_address_file
from ray.cluster_utils import Cluster

_STORE_BYTES = 100 * 2**20
# Each node would start a process for each of its cores beforehand, and all of them share this machine's.
_SETTINGS = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0", "OMP_NUM_THREADS": "1"}


@contextmanager
def raylets(nodes: int, cpus: int) -> Iterator[str]:
    """The address of a cluster of a head, which takes no work, and `nodes` that tell of `cpus` cores each."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets in it: its path must be short
    before = dict(os.environ)
    os.environ.update(_SETTINGS)  # Ray's processes inherit what is set when they are started
    os.environ.pop("RAY_ADDRESS", None)
    try:
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder), "object_store_memory": _STORE_BYTES}
        # Ray notes the head's address there, and on a machine that never ran it the folder is missing.
        Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes):
                cluster.add_node(num_cpus=cpus, object_store_memory=_STORE_BYTES)
            yield cluster.address
        finally:
            cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
