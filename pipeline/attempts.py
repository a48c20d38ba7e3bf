"""How often work was begun and never ended: each time, the process that did it died.

A process that dies takes its memory along, so the count is kept by one small actor beside the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline.errors import ClusterError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

_T = TypeVar("_T")
_REPLY_S = 10.0  # an answer takes a millisecond; a run goes on without a count that cannot be asked for
# Of a process while it loads the model, one after the other: a node that is taken away is none of its doing.
_MOST_DEATHS = 3


class Attempts(Protocol):
    """What a stage tells of its work."""

    def begin(self, work: str, alone: bool = False) -> int:
        """How many processes died of `work` before, or beside it. Counts this beginning.

        Work that a process has died of is not begun unless it has its process `alone`.
        """
        ...

    def end(self, work: str) -> None:
        """Forget `work`: nobody died."""
        ...


class BegunWork:
    """The count itself. It holds what is in work, and what was when a process died, and is small for that."""

    def __init__(self) -> None:
        """Nothing has begun."""
        self._begun: dict[str, int] = {}

    def begin(self, work: str, alone: bool = False) -> int:
        """See Attempts."""
        deaths = self._begun.get(work, 0)
        if alone or not deaths:
            self._begun[work] = deaths + 1
        return deaths

    def end(self, work: str) -> None:
        """See Attempts."""
        self._begun.pop(work, None)


class SharedAttempts:
    """The count of a run, for all processes of its cluster. Where it cannot be reached, nothing has died."""

    def __init__(self, actor: ActorHandle) -> None:
        """`actor` runs BegunWork."""
        self._actor = actor

    def begin(self, work: str, alone: bool = False) -> int:
        """See Attempts. Takes about a millisecond."""
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(self._actor.begin.remote(work, alone), timeout=_REPLY_S)
        except RayError:
            return 0

    def end(self, work: str) -> None:
        """See Attempts. Does not wait."""
        self._actor.end.remote(work)


def start_attempts() -> ActorHandle:
    """The actor of a SharedAttempts, on the node of this process: it lives and dies with the run. To be killed."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(BegunWork).remote()


def load_or_give_up(load: Callable[[], _T], attempts: SharedAttempts) -> _T:
    """What `load` returns, in an actor that Ray starts again whenever its process dies.

    Raises ClusterError when that has happened too often while it was loading: it would never end.
    """
    import ray

    work = f"load {ray.get_runtime_context().get_actor_id()}"
    deaths = attempts.begin(work, alone=True)
    if deaths >= _MOST_DEATHS:
        raise ClusterError(f"the process that loads the model died {deaths} times while it did so")
    loaded = load()
    attempts.end(work)
    return loaded
