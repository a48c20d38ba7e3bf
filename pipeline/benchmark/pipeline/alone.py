"""A stage of a finished run by itself, over the same videos: no cluster, no other stage, nothing to wait for.

`python -m pipeline.benchmark.pipeline.alone ALONE` takes an Alone as JSON and writes the rate to stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.benchmark.pipeline.driver import DriverError
from pipeline.benchmark.pipeline.rate import middle_rate
from pipeline.config_load import load_config
from pipeline.model_load import find_model, load_engine
from pipeline.resolve import resolve_pruning
from pipeline.run import decoder_arguments
from pipeline.run_record import load_plan
from pipeline.stages import VIDEOS_AT_ONCE, Answerer, Decoder
from pipeline.stages_tables import read_groups

_PROGRAM = "pipeline.benchmark.pipeline.alone"
Stage = Literal["decode", "answer"]


@dataclass(frozen=True)
class Alone:
    """The stage, the job's settings as in `driver.Order`, the run whose videos are taken, and the machine's cores."""

    stage: Stage
    task: str
    given: tuple[str, ...]
    run_id: str
    cores: int


def stage_rate(alone: Alone) -> float:
    """Rows a second of one actor of a stage, measured in a process of its own. Raises DriverError."""
    command = [sys.executable, "-m", _PROGRAM, json.dumps(asdict(alone))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DriverError(f"measuring {alone.stage} alone ended with {done.returncode}: {done.stderr[-500:]}")
    return float(done.stdout.splitlines()[-1])


def main(asked: str) -> None:
    """Measure what is asked."""
    alone = Alone(**json.loads(asked))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: alone.cores])
    config = load_config(None, list(alone.given), alone.task)
    model = find_model(config.model, lambda _: None)
    config = resolve_pruning(config, model.info)
    groups = []
    for shard in load_plan(config.output, alone.run_id).shards:
        table = read_groups(pa.table({"uri": [shard.uri]}))
        groups += [table.slice(place, 1) for place in range(table.num_rows)]
    with closing(Decoder(**decoder_arguments(config, model.info))) as decoder:
        if alone.stage == "decode":
            rate = _rate(decoder, groups, VIDEOS_AT_ONCE)
        else:
            videos = [decoder(group) for group in groups]
            sampling = config.generation.model_dump(exclude={"prompt"})
            answerer = Answerer(partial(load_engine, model, "cpu", 1), config.pruning, sampling)
            rate = _rate(answerer, videos, config.cluster.batch_size)
    sys.stdout.write(f"{rate}\n")


def _rate(stage: Callable[[pa.Table], pa.Table], videos: Sequence[pa.Table], calls: int) -> float:
    """Rows a second of a stage that gets `videos` one by one, in so many calls at once."""

    def timed(video: pa.Table) -> list[float]:
        stage(video)
        return [time.monotonic()] * len(video["items"][0])

    with ThreadPoolExecutor(calls) as callers:
        return middle_rate(np.array([moment for moments in callers.map(timed, videos) for moment in moments]))


if __name__ == "__main__":
    main(sys.argv[1])
