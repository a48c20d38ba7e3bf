"""How many actors each stage has, and what each takes of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import ray.data

_SMALL_CLUSTER_CPUS = 8


@dataclass(frozen=True)
class Pools:
    """How many actors each stage has, and what each of them takes from its node.

    A number of actors is how many there are as soon as they fit; of two, the second is how many there may be.
    """

    decoders: int | tuple[int, int]
    answerers: int | tuple[int, int]
    batch_size: int
    cpus_per_actor: float = 1.0
    gpus_per_answerer: float = 0.0
    threads_per_answerer: int = 1
    retries: int = 2

    @property
    def cpus_per_answerer(self) -> float:
        """None for one that has a GPU: decoders must not keep it from its GPU by taking the cores beside that."""
        return 0.0 if self.gpus_per_answerer else self.cpus_per_actor


def most(size: int | tuple[int, int]) -> int:
    """How many actors a pool of this size may come to have."""
    return size if isinstance(size, int) else size[1]


def fitted(pools: Pools) -> Pools:
    """The same actors with the cores that the cluster has for each now: one, or, if it is small, a share.

    With that share all of them fit.
    """
    actors = most(pools.decoders) + (0 if pools.gpus_per_answerer else most(pools.answerers))
    return replace(pools, cpus_per_actor=_share(ray.cluster_resources().get("CPU", 0), actors))


def _share(cluster_cpus: float, actors: int) -> float:
    return max(0.01, min(1.0, int(cluster_cpus / actors * 100) / 100)) if _is_small(cluster_cpus) else 1.0


def _is_small(cluster_cpus: float) -> bool:
    return 0 < cluster_cpus < _SMALL_CLUSTER_CPUS


def actor_pool(
    size: int | tuple[int, int], cpus: float, gpus: float = 0.0, calls: int = 1
) -> ray.data.ActorPoolStrategy:
    """A pool of actors that take so many `cpus` and `gpus` each and have so many `calls` in work at once.

    It has as many as surely fit at once and for good, and more as Ray Data finds room and work. Actors that wait
    for cores must not take the last ones from other stages; and a pool that may shrink does so in every
    pause of the back-pressure, only to pay for new processes seconds later: only two numbers ask for that.
    """
    fewest = size if isinstance(size, int) else size[0]
    total = ray.cluster_resources()
    cores = total.get("CPU", 0)
    # On a small cluster all of them fit.
    room = most(size) if not cpus or _is_small(cores) else int((cores - 1) / 2 / cpus)
    if gpus:
        room = min(room, int(total.get("GPU", 0) / gpus))
    return ray.data.ActorPoolStrategy(
        min_size=max(1, min(fewest, room)),
        max_size=most(size),
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )
