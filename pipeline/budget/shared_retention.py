"""The retention of a run's next videos, told by the driver to the answerers wherever they are."""

from __future__ import annotations

from contextlib import suppress

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_REPLY_S = 10.0  # an answer takes a millisecond


class _Held:
    """The number itself, in an actor beside the driver."""

    def __init__(self, retention: float) -> None:
        self._retention = retention

    def get(self) -> float:
        return self._retention

    def set(self, retention: float) -> None:
        self._retention = retention


class SharedRetention:
    """One number for all processes of the connected cluster. It lives as long as somebody here knows it."""

    def __init__(self, retention: float) -> None:
        """Begin with `retention`."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_Held).remote(retention)
        self._latest = retention

    def set(self, retention: float) -> None:
        """Tell another one. Does not wait."""
        if retention != self._latest:
            self._latest = retention
            self._actor.set.remote(retention)

    def __call__(self) -> float:
        """What was told last; what this process knew last, where nobody answers. Takes about a millisecond."""
        with suppress(RayError):
            self._latest = ray.get(self._actor.get.remote(), timeout=_REPLY_S)
        return self._latest
