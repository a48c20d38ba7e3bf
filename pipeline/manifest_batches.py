"""What every manifest format yields: Arrow batches of one schema, and the rows that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

BATCH_ROWS = 512
BATCH_BYTES = 16 * 2**20  # text formats close a batch earlier when its lines are long


@dataclass(frozen=True)
class Problem:
    """Why a row could not be read at all, and a digest of its text that tells it from other such rows."""

    message: str
    digest: str


@dataclass(frozen=True)
class Batch:
    """Consecutive rows. `problems` maps places in the batch to what is wrong there; those cells are null."""

    rows: pa.RecordBatch
    problems: dict[int, Problem] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchSource:
    """A stream of batches that can be started over, all of `schema`."""

    schema: pa.Schema
    batches: Callable[[], Iterator[Batch]]


def is_unicode(texts: Iterable[str]) -> bool:
    """Whether a file can hold these texts: half of a surrogate pair cannot be written as UTF-8."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
