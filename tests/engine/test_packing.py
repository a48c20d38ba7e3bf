"""Every waiting sequence is prefilled exactly once, within the limits, next to those it should run with."""

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.kv_cache import cache_bytes
from pipeline.engine.packing import Room, in_line, next_pack
from pruning.cost import DecoderShape

SHAPE = DecoderShape(hidden=8, heads=2, kv_heads=1, head_size=4, ffn=8, layers=2)
AMPLE = Room(rows=1000, tokens=10**9, kv_bytes=10**12)


@dataclass
class Waiting:
    """As much of a sequence as packing looks at."""

    number: int
    video: str
    cached_tokens: list[int]
    arrival: int = 0
    is_to_run_alone: bool = False
    request: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_new_tokens=10))

    @property
    def packed_tokens(self):
        return self.cached_tokens[0]


waiting_lists = st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 5), st.integers(0, 2)), max_size=150).map(
    lambda drawn: [Waiting(i, f"v{video}", [n, n // 2], arrival) for i, (n, video, arrival) in enumerate(drawn)]
)
rooms = st.builds(Room, rows=st.integers(1, 64), tokens=st.integers(1, 60_000), kv_bytes=st.integers(1, 2**23))


def bytes_of(pack):
    return cache_bytes(SHAPE, [s.cached_tokens for s in pack], [10] * len(pack), 4)


@given(waiting_lists, rooms)
def test_packs_cover_the_line_within_their_limits(waiting, room):
    line = in_line(waiting)
    assert sorted(s.number for s in line) == list(range(len(waiting)))
    while line:
        pack = next_pack(line, room, SHAPE, 4)
        assert pack == line[: len(pack)]
        assert len(pack) <= room.rows
        assert not pack or bytes_of(pack) <= room.kv_bytes
        assert len(pack) <= 1 or sum(s.packed_tokens for s in pack) <= room.tokens
        assert bytes_of(pack) <= 2 * sum(bytes_of([s]) for s in pack)  # padding takes no more than entries
        if not pack:
            assert bytes_of(line[:1]) > room.kv_bytes
        line = line[len(pack) or 1 :]


@given(waiting_lists)
def test_questions_about_one_video_stay_neighbours(waiting):
    order = [s.video for s in in_line(waiting)]
    changes = sum(1 for before, after in pairwise(order) if before != after)
    assert changes == max(0, len(set(order)) - 1)


def test_who_came_first_goes_first_and_of_one_arrival_the_longest():
    waiting = [
        Waiting(0, "a", [10, 5]),
        Waiting(1, "b", [40, 20]),
        Waiting(2, "c", [900, 450], arrival=1),
        Waiting(3, "a", [90, 45], arrival=1),  # about a video that others asked about before
    ]
    assert [s.number for s in in_line(waiting)] == [0, 3, 1, 2]
    assert [s.number for s in in_line(reversed(waiting))] == [0, 3, 1, 2]


def test_a_cache_too_large_for_memory_is_cut():
    line = [Waiting(i, f"v{i}", [1000, 500]) for i in range(10)]
    room = Room(rows=64, tokens=10**9, kv_bytes=bytes_of(line[:4]))
    assert len(next_pack(line, room, SHAPE, 4)) == 4
    assert next_pack(line, Room(64, 10**9, bytes_of(line[:1]) - 1), SHAPE, 4) == []


def test_short_sequences_do_not_join_where_most_of_the_cache_would_be_padding():
    line = [Waiting(0, "a", [4000, 4000]), *(Waiting(i, f"v{i}", [100, 100]) for i in range(1, 9))]
    assert len(next_pack(line, AMPLE, SHAPE, 4)) == 2
    assert len(next_pack(line[1:], AMPLE, SHAPE, 4)) == 8


def test_what_needs_all_memory_goes_first_and_by_itself():
    waiting = [Waiting(i, f"v{i}", [100, 50], is_to_run_alone=i == 2) for i in range(4)]
    line = in_line(waiting)
    assert [s.number for s in next_pack(line, AMPLE, SHAPE, 4)] == [2]
    assert len(next_pack([line[1], line[0]], AMPLE, SHAPE, 4)) == 1
