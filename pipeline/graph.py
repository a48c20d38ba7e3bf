"""The Ray Data graph: manifest shards -> groups -> decoders -> answerers -> rows on the driver.

Every block between decoder and answerer is one video, so decoding, answering and committing
overlap, and the frames in flight are bounded in batches: two at each answerer and about as many
waiting (`_context`). An answerer has a batch of videos in work at any time, each in a call of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline import run_environment  # noqa: F401  # before Ray

# isort: split
import ray.data
from ray.data.exceptions import ExecutionTimeoutError

from pipeline.attempts import SharedAttempts, load_or_give_up, start_attempts
from pipeline.block_stats import ForgetBlockStats
from pipeline.errors import ClusterError
from pipeline.pools import Pools, actor_pool, fitted
from pipeline.stages import VIDEOS_AT_ONCE, Answerer, Decoder
from pipeline.stages_tables import GroupReader, unpack_answers
from pipeline.storage import absolute

if TYPE_CHECKING:
    from pipeline.run_record import Shard

_READER_CPUS = 0.0  # what actors wait for, after a node has died, must not be what they wait with
_SHARDS_AT_ONCE = 2  # read, and held until their last group goes to a decoder
_START_TIMEOUT_S = 1800  # for nodes to come up and a large model to load; then the run fails instead of waiting on


def answered_rows(
    shards: Iterable[Shard], pools: Pools, decoder: dict[str, Any], answerer: dict[str, Any], stall_timeout_s: float
) -> Iterator[list[dict[str, Any]]]:
    """Run the graph; yield the rows of each batch (as `unpack_answers`) when it is finished, in no order.

    `decoder` and `answerer` are the constructor arguments of the two stages. Closing the iterator
    ends the graph with all that is in work. Where a node died and no other came, the actors that it
    had wait for one for ever: if that leaves the graph without progress, it is begun again with what
    the cluster has, for the shards that are not complete.

    Raises ClusterError where no stage takes or gives anything for `stall_timeout_s` and no node has
    died, or nothing came since; what else Ray raises passes through.
    """
    left = {shard.name: shard for shard in shards if shard.rows > shard.refused}
    arrived: dict[str, set[str]] = {}  # items of the shards that are in work
    while left:
        nodes, has_moved = _nodes(), False
        sources = [{"uri": absolute(shard.uri)} for shard in left.values()]
        try:
            for rows in _rows(sources, pools, decoder, answerer, stall_timeout_s):
                has_moved = True
                _strike_out(rows, left, arrived)
                yield rows
            return
        except ExecutionTimeoutError as error:
            if nodes <= _nodes() or not has_moved:
                told = f"no progress for {stall_timeout_s:g} s; {_stages_at_work(str(error))}"
                raise ClusterError(told) from error
            pools = fitted(pools)


def _strike_out(rows: list[dict[str, Any]], left: dict[str, Shard], arrived: dict[str, set[str]]) -> None:
    """Take from `left` the shards of which the last rows have come."""
    for row in rows:
        shard = left.get(row["shard"])
        if shard is not None:
            items = arrived.setdefault(shard.name, set())
            items.add(row["item_id"])
            if len(items) == shard.rows - shard.refused:
                del left[shard.name], arrived[shard.name]


def _nodes() -> set[str]:
    """Those that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _rows(
    sources: list[dict[str, str]],
    pools: Pools,
    decoder: dict[str, Any],
    answerer: dict[str, Any],
    stall_timeout_s: float,
) -> Iterator[list[dict[str, Any]]]:
    counting = start_attempts()
    try:
        attempts = SharedAttempts(counting)
        watched = {"attempts": attempts, "retries": pools.retries}
        load = {"load": partial(load_or_give_up, answerer["load"], attempts)}
        with ray.data.DataContext.current(_context(stall_timeout_s)):
            rows = _graph(sources, pools, decoder | watched, answerer | watched | load)
        with closing(iter(rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))) as tables:
            for table in tables:
                yield unpack_answers(table)
    finally:
        if ray.is_initialized():  # else it is gone with its cluster
            ray.kill(counting)


def _graph(
    sources: list[dict[str, str]], pools: Pools, decoder: dict[str, Any], answerer: dict[str, Any]
) -> ray.data.Dataset:
    # Ray tries the work of an actor that died again and again; `attempts` of the stages puts an end to it.
    return (
        ray.data.from_items(sources, override_num_blocks=len(sources))
        .map_batches(
            GroupReader,
            batch_size=1,
            batch_format="pyarrow",
            compute=actor_pool(1, _READER_CPUS, calls=_SHARDS_AT_ONCE),
            num_cpus=_READER_CPUS,
        )
        .map_batches(
            Decoder,
            fn_constructor_kwargs=decoder,
            batch_size=1,
            batch_format="pyarrow",
            compute=actor_pool(pools.decoders, pools.cpus_per_actor, calls=VIDEOS_AT_ONCE),
            num_cpus=pools.cpus_per_actor,
        )
        # Videos reach an answerer one a call, and its calls run at once: whenever one is answered the next
        # joins those that are being decoded.
        .map_batches(
            Answerer,
            fn_constructor_kwargs=answerer,
            batch_size=1,
            batch_format="pyarrow",
            compute=actor_pool(pools.answerers, pools.cpus_per_answerer, pools.gpus_per_answerer, pools.batch_size),
            num_cpus=pools.cpus_per_answerer,
            num_gpus=pools.gpus_per_answerer,
        )
    )


def _stages_at_work(told: str) -> str:
    """What Ray tells of each operator that has not ended, one a line, in our words."""
    lines = re.findall(r"- (?:\w+\()?(\w+)\)?: (\d+) active task\(s\), (\d+) finished", told)
    stages = [f"{name} has {active} in work and {done} done" for name, active, done in lines]
    return ", ".join(stages) or "no stage was at work"


def _context(stall_timeout_s: float) -> ray.data.DataContext:
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # What Ray Data would gather of each task and keep of each block, nobody reads.
    context.memory_usage_poll_interval_s = None
    context.custom_execution_callback_classes = [ForgetBlockStats]
    # Cut every output into blocks of one row: a group is decoded and sent on by itself. (A repartition
    # step would do so too, but takes a core that a machine of two does not have.)
    context.target_max_block_size = 1
    # Nothing is decoded before the model is there: frames would fill the object store meanwhile.
    context.wait_for_min_actors_s = _START_TIMEOUT_S
    context.execution_no_progress_timeout_s = stall_timeout_s
    # A stage may be ahead of the next by as much as that has in work, and no more.
    context.downstream_capacity_backpressure_ratio = 1.0
    return context
