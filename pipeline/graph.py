"""The Ray Data graph: manifest shards -> groups -> decoders -> answerers -> rows on the driver.

Every block between decoder and answerer is one video, so decoding, answering and committing
overlap, and the frames in flight are bounded in batches: two at each answerer and about as many
waiting (`_context`). An answerer has a batch of videos in work at any time, each in a call of its
own.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.util.annotations import RayDeprecationWarning

from pipeline.errors import ClusterError
from pipeline.stages import VIDEOS_AT_ONCE, Answerer, Decoder
from pipeline.stages_tables import read_groups, unpack_answers
from pipeline.storage import absolute

if TYPE_CHECKING:
    from pipeline.run_record import Shard

_READERS = 2  # tasks that read manifest shards: a shard is read in far less time than it is answered
_READER_CPUS = 0.25
_SMALL_CLUSTER_CPUS = 8
# Videos reach an answerer one a call, and its calls run at once: whenever one is answered the next joins those that
# are being decoded. This many threads are enough for any batch.
_MOST_CALLS = 64
_START_TIMEOUT_S = 1800  # for nodes to come up and a large model to load; then the run fails instead of waiting on


@dataclass(frozen=True)
class Pools:
    """How many actors each stage has, and what each of them takes from its node."""

    decoders: int
    answerers: int
    batch_size: int
    cpus_per_actor: float = 1.0
    gpus_per_answerer: float = 0.0
    threads_per_answerer: int = 1
    retries: int = 2


def cpus_per_actor(cluster_cpus: float, actors: int) -> float:
    """The cores to reserve for each actor: one, or on a small machine a share that lets all of them fit.

    Half a core stays free for the tasks that read manifest shards, without which nothing starts.
    """
    if not 0 < cluster_cpus < _SMALL_CLUSTER_CPUS:
        return 1.0
    return max(0.01, min(1.0, int((cluster_cpus - 2 * _READER_CPUS) / actors * 100) / 100))


def answered_rows(
    shards: Iterable[Shard], pools: Pools, decoder: dict[str, Any], answerer: dict[str, Any], stall_timeout_s: float
) -> Iterator[list[dict[str, Any]]]:
    """Run the graph; yield the rows of each batch (as `unpack_answers`) when it is finished, in no order.

    `decoder` and `answerer` are the constructor arguments of the two stages. Closing the iterator
    ends the graph with all that is in work. Raises ClusterError where no stage takes or gives
    anything for `stall_timeout_s`; what else Ray raises passes through.
    """
    sources = [{"uri": absolute(shard.uri)} for shard in shards if shard.rows > shard.refused]
    if not sources:
        return
    calls = min(pools.batch_size, _MOST_CALLS)
    with ray.data.DataContext.current(_context(stall_timeout_s)), warnings.catch_warnings():
        # How often a task is tried again whose actor died. Ray 2.60 has no other name for it yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        rows = (
            ray.data.from_items(sources, override_num_blocks=len(sources))
            .map_batches(
                read_groups,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.TaskPoolStrategy(size=min(_READERS, len(sources))),
                num_cpus=_READER_CPUS,
            )
            .map_batches(
                Decoder,
                fn_constructor_kwargs=decoder,
                batch_size=1,
                batch_format="pyarrow",
                compute=_pool(pools.decoders, pools.cpus_per_actor, calls=VIDEOS_AT_ONCE),
                num_cpus=pools.cpus_per_actor,
                max_task_retries=pools.retries,
            )
            .map_batches(
                Answerer,
                fn_constructor_kwargs=answerer,
                batch_size=math.ceil(pools.batch_size / calls),
                batch_format="pyarrow",
                compute=_pool(pools.answerers, pools.cpus_per_actor, pools.gpus_per_answerer, calls),
                num_cpus=pools.cpus_per_actor,
                num_gpus=pools.gpus_per_answerer,
                max_task_retries=pools.retries,
            )
        )
    try:
        with closing(iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))) as tables:
            for table in tables:
                yield unpack_answers(table)
    except ExecutionTimeoutError as error:
        raise ClusterError(f"no progress for {stall_timeout_s:g} s; {_stages_at_work(str(error))}") from error


def _stages_at_work(told: str) -> str:
    """What Ray tells of each operator that has not ended, one a line, in our words."""
    lines = re.findall(r"- (?:\w+\()?(\w+)\)?: (\d+) active task\(s\), (\d+) finished", told)
    stages = [f"{name} has {active} in work and {done} done" for name, active, done in lines]
    return ", ".join(stages) or "no stage was at work"


def _pool(size: int, cpus: float, gpus: float = 0.0, calls: int = 1) -> ray.data.ActorPoolStrategy:
    # As many as surely fit at once and for good, and more as Ray Data finds room. Actors that wait for
    # cores must not take the last ones from the tasks that feed them; and a pool that may shrink does
    # so in every pause of the back-pressure, only to pay for new processes seconds later.
    total = ray.cluster_resources()
    room = size if cpus < 1 else int((total.get("CPU", 0) - 1) / 2 / cpus)
    if gpus:
        room = min(room, int(total.get("GPU", 0) / gpus))
    return ray.data.ActorPoolStrategy(
        min_size=max(1, min(size, room)),
        max_size=size,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=calls > 1,
    )


def _context(stall_timeout_s: float) -> ray.data.DataContext:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Cut every output into blocks of one row: a group is decoded and sent on by itself. (A repartition
    # step would do so too, but takes a core that a machine of two does not have.)
    context.target_max_block_size = 1
    # Nothing is decoded before the model is there: frames would fill the object store meanwhile.
    context.wait_for_min_actors_s = _START_TIMEOUT_S
    context.execution_no_progress_timeout_s = stall_timeout_s
    # A stage may be ahead of the next by as much as that has in work, and no more.
    context.downstream_capacity_backpressure_ratio = 1.0
    return context
