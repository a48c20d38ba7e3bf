"""A real Ray cluster of several raylets on this machine, whose nodes and workers can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray._common.utils import get_ray_address_file
from ray._private.node import Node
from ray.cluster_utils import Cluster

# isort: split
import psutil  # Ray's own copy: Ray comes first

MIB = 2**20
_ROOT = Path(__file__).parents[2]
_RESTART_S = 60.0
_SETTINGS = {
    "PYTHONPATH": str(_ROOT),  # workers import the tests' engine
    "RAY_worker_niceness": "0",  # on a machine with other work they would wait for ever
    "RAY_enable_worker_prestart": "0",  # a process for each logical core of each node is more than a test machine has
    "RAY_prestart_worker_first_driver": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class Raylets:
    """The cluster's head, which takes no work, and its worker nodes."""

    def __init__(self, workers: int, cpus: int, folder: Path, environment: dict[str, str]) -> None:
        """Everything that the nodes write lies in `folder`, what they spill in `folder`/spilled."""
        self._environment = environment
        self._cpus = cpus
        self.spilled = folder / "spilled"
        self.logs = folder / "session_latest" / "logs"
        self._of_each_node = {"object_store_memory": 80 * MIB, "object_spilling_directory": str(self.spilled)}
        spared = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        head = {"num_cpus": 0, "temp_dir": str(folder), **spared, **self._of_each_node}
        with _variables(environment):
            # Ray notes the head's address there, and on a machine that never ran it the folder is missing.
            Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(workers):
            self.add_node()

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def nodes(self) -> list[Node]:
        """The worker nodes that are alive."""
        return list(self._cluster.worker_nodes)

    def add_node(self, gpus: int = 0) -> None:
        """One more worker node; its GPUs are there for the scheduler alone."""
        with _variables(self._environment):
            self._cluster.add_node(num_cpus=self._cpus, num_gpus=gpus, **self._of_each_node)

    def kill_node(self, node: Node) -> None:
        """As a pre-empted machine ends: at once, with everything on it."""
        processes = self.processes(node)
        for process in processes:  # first all stop: none must see another die
            _send(process, signal.SIGSTOP)
        for process in processes:
            _send(process, signal.SIGKILL)
        self._cluster.remove_node(node, allow_graceful=False)

    def processes(self, node: Node, name: str = "") -> list[psutil.Process]:
        """The processes of a node whose title has `name` in it, as in "Answerer"."""
        found = []
        for [info] in node.all_processes.values():
            with_children = _family(info.process.pid)
            found += [process for process in with_children if name in _title(process)]
        return found

    def workers(self, name: str) -> list[psutil.Process]:
        """The processes of the actors of one stage, of all worker nodes."""
        titled = f"({name})"
        return [process for node in self.nodes for process in self.processes(node) if titled in _title(process)]

    def kill_worker(self, name: str) -> None:
        """Kill one actor of a stage; where all are being started anew, the first that is there."""
        deadline = time.monotonic() + _RESTART_S
        while not (found := self.workers(name)):
            assert time.monotonic() < deadline, f"no {name} for {_RESTART_S} s"
            time.sleep(0.05)
        _send(found[0], signal.SIGKILL)

    def shutdown(self) -> None:
        self._cluster.shutdown()


@contextmanager
def raylets(environment: dict[str, str], workers: int = 2, cpus: int = 4) -> Iterator[Raylets]:
    """A cluster whose processes inherit `environment`; everything of it is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets in it: its path must be short
    cluster = Raylets(workers, cpus, folder, {**_SETTINGS, **environment})
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _variables(environment: dict[str, str]) -> Iterator[None]:
    """Ray's processes inherit what is set when they are started."""
    before = dict(os.environ)
    os.environ.update(environment)
    os.environ.pop("RAY_ADDRESS", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
