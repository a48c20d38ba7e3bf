"""Which of the waiting sequences are prefilled together."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Several
from dataclasses import dataclass

from pipeline.engine.sequence import Sequence
from pruning.cost import DecoderShape


@dataclass(frozen=True)
class Room:
    """What a prefill pack may take: rows of a decode step, tokens that enter layer 0, bytes of KV cache."""

    rows: int
    tokens: int
    kv_bytes: int


def in_line(waiting: Iterable[Sequence]) -> list[Sequence]:
    """The order in which sequences are prefilled.

    Those about one video are neighbours, so that its tokens need not be kept long. Of videos that came
    at the same time long ones go first and those of similar length together, so that little of a cache
    is padding; what came later waits, so that nothing waits for ever.
    """
    waiting = list(waiting)
    arrivals: dict[str, int] = {}
    longest: dict[str, int] = {}
    for sequence in waiting:
        video = sequence.video
        arrivals[video] = min(arrivals.get(video, sequence.arrival), sequence.arrival)
        longest[video] = max(longest.get(video, 0), sequence.packed_tokens)
    return sorted(
        waiting,
        key=lambda s: (not s.is_to_run_alone, arrivals[s.video], -longest[s.video], s.video, s.number),
    )


def next_pack(line: Several[Sequence], room: Room, shape: DecoderShape, itemsize: int) -> list[Sequence]:
    """As many from the head of the line as there is room for, none if there is none for the first.

    In every layer the pack's cache is as wide as its longest sequence: shorter ones join as long as
    padding takes less of it than entries.
    """
    pack: list[Sequence] = []
    tokens = entries = 0
    slots = [0] * shape.layers
    entry_bytes = 2 * shape.kv_heads * shape.head_size * itemsize
    for sequence in line:
        own = [length + sequence.request.max_new_tokens for length in sequence.cached_tokens]
        slots = [max(pair) for pair in zip(slots, own, strict=True)]
        entries += sum(own)
        tokens += sequence.packed_tokens
        padded = (len(pack) + 1) * sum(slots)
        if len(pack) == room.rows or padded * entry_bytes > room.kv_bytes:
            break
        if pack and (tokens > room.tokens or padded > 2 * entries or sequence.is_to_run_alone):
            break
        pack.append(sequence)
        if sequence.is_to_run_alone:
            break
    return pack
