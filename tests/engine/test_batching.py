"""Every request runs exactly once, within the limits, next to those it should run with."""

from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import batching
from pipeline.engine.kv_cache import cache_bytes
from pruning.cost import DecoderShape

SHAPE = DecoderShape(hidden=8, heads=2, kv_heads=1, head_size=4, ffn=8, layers=2)


@dataclass
class Waiting:
    """As much of a sequence as batching looks at."""

    number: int
    video: str
    cached_tokens: list[int]

    @property
    def entering_tokens(self):
        return self.cached_tokens

    request: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_new_tokens=10))


waiting_lists = st.lists(st.tuples(st.integers(1, 30_000), st.integers(0, 5)), max_size=150).map(
    lambda drawn: [Waiting(i, f"v{video}", [tokens, tokens // 2]) for i, (tokens, video) in enumerate(drawn)]
)


@given(waiting_lists)
def test_batches_and_packs_cover_all_within_their_limits(waiting):
    batches = list(batching.batches(waiting, SHAPE, itemsize=4, is_cuda=False))
    assert sorted(s.number for batch in batches for s in batch) == list(range(len(waiting)))
    for batch in batches:
        assert len(batch) <= batching._MAX_BATCH
        size = cache_bytes(SHAPE, [s.cached_tokens for s in batch], [10] * len(batch), 4)
        assert len(batch) == 1 or size <= batching._CACHE_BYTES_CPU
        packs = list(batching.packs(batch))
        assert [s for pack in packs for s in pack] == batch
        for pack in packs:
            assert len(pack) == 1 or sum(s.cached_tokens[0] for s in pack) <= batching._PREFILL_TOKENS


@given(waiting_lists)
def test_questions_about_one_video_stay_neighbours(waiting):
    order = [s.video for batch in batching.batches(waiting, SHAPE, 4, is_cuda=False) for s in batch]
    changes = sum(1 for before, after in pairwise(order) if before != after)
    assert changes == max(0, len(set(order)) - 1)


def test_a_cache_too_large_for_memory_is_cut(monkeypatch):
    waiting = [Waiting(i, f"v{i}", [1000, 500]) for i in range(10)]
    monkeypatch.setattr(batching, "_CACHE_BYTES_CPU", cache_bytes(SHAPE, [[1000, 500]] * 4, [10] * 4, 4))
    assert [len(batch) for batch in batching.batches(waiting, SHAPE, 4, is_cuda=False)] == [4, 4, 2]
