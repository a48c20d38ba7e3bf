"""Ray Data's statistics of blocks: they must not add up while a run goes on."""

import ray.data
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipeline.block_stats import ForgetBlockStats


def most_held(*callbacks):
    """How many statistics an operator holds after a step, at most, in a run of thirty blocks."""
    held = []

    class Count(ExecutionCallback):
        def on_execution_step(self, executor):
            held.append(max(len(getattr(operator, "_output_blocks_stats", ())) for operator in executor._topology))

    context = ray.data.DataContext.get_current().copy()
    context.custom_execution_callback_classes = [*callbacks, Count]
    context.target_max_block_size = 1  # a block for each row
    with ray.data.DataContext.current(context):
        rows = ray.data.range(30, override_num_blocks=3).map_batches(lambda rows: rows, batch_size=1)
        assert sum(len(batch["id"]) for batch in rows.iter_batches(batch_size=None)) == 30
    return max(held)


def test_they_are_forgotten_after_each_step(ray_cluster):
    assert most_held() >= 30, "Ray Data keeps them no more: pipeline.block_stats can go"
    assert most_held(ForgetBlockStats) == 0
