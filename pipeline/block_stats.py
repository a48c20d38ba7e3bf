"""What Ray Data would remember of every block for as long as a run lasts: 3 kB a video, for a report nobody reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback  # DataContext asks for its subclasses

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class ForgetBlockStats(ExecutionCallback):
    """Drops each operator's statistics of finished blocks, so that a driver's memory does not grow with its run."""

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Called by the scheduling loop."""
        for operator in executor._topology:
            if kept := getattr(operator, "_output_blocks_stats", None):
                kept.clear()
