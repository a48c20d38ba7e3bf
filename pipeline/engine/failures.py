"""What went wrong with one request, as a code and a line."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pipeline.engine.checkpoint import one_line
from pipeline.engine.errors import EncodeError, PromptTooLongError
from pipeline.engine.memory import is_out_of_memory
from pipeline.engine.request import Failure, FailureCode
from pipeline.engine.sequence import Sequence
from pruning import UnreachableRetentionError


class Failed(NamedTuple):
    """A request that cannot be answered, by its number, and why."""

    number: int
    error: Exception
    is_refused: bool = False  # at admission, before anything was computed

    def as_failure(self) -> Failure:
        """For the caller of a stream; the message does not repeat the number."""
        code = self._code()
        message = one_line(self.error) if code == "generate_failed" else " ".join(str(self.error).split())
        return Failure(self.number, code, message.removeprefix(f"request {self.number}: "))

    def _code(self) -> FailureCode:
        if is_out_of_memory(self.error):
            return "out_of_memory"
        if isinstance(self.error, EncodeError):
            return "encode_failed"
        if isinstance(self.error, PromptTooLongError):
            return "prompt_too_long"
        if isinstance(self.error, UnreachableRetentionError):
            return "retention_unreachable"
        return "invalid_request" if self.is_refused and isinstance(self.error, ValueError) else "generate_failed"


def failed_alone(sequence: Sequence, error: Exception) -> Failed:
    """The failure of a sequence that had the device to itself; one for want of memory says whose it is."""
    if is_out_of_memory(error):
        told = (
            f"request {sequence.number}: out of memory with {sequence.grid.tokens} video tokens "
            f"and no other request at work ({one_line(error)})"
        )
        cause, error = error, torch.OutOfMemoryError(told)
        error.__cause__ = cause
    return Failed(sequence.number, error)
