"""The cache holds what was put in, wherever rows move."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.attention import cached_attention
from pipeline.engine.kv_cache import KVCache, cache_bytes
from pruning.cost import DecoderShape

SHAPE = DecoderShape(hidden=8, heads=4, kv_heads=2, head_size=4, ffn=8, layers=3)
lengths_of_a_sequence = st.lists(st.integers(1, 6), min_size=3, max_size=3).map(lambda n: sorted(n, reverse=True))


@given(
    lengths=st.lists(lengths_of_a_sequence, min_size=1, max_size=4),
    drops=st.lists(st.integers(0, 3), max_size=6),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_appending_and_dropping_equals_separate_lists(lengths, drops, seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*size):
        return torch.randn(*size, generator=generator)

    cache = KVCache(SHAPE, lengths, [7] * len(lengths), torch.float32, torch.device("cpu"))
    expected = []
    for row, by_layer in enumerate(lengths):
        expected.append([[random(n, 2, 4), random(n, 2, 4)] for n in by_layer])
        for layer, (keys, values) in enumerate(expected[row]):
            cache.write(layer, row, keys, values)
    for drop in [*drops, None]:
        cache.advance()
        for layer in range(SHAPE.layers):
            new_keys, new_values = random(len(expected), 2, 4), random(len(expected), 2, 4)
            keys, values, mask = cache.append(layer, new_keys, new_values)
            query = random(len(expected), 4, 4)
            attended = cached_attention(query, keys, values, mask)
            for row, by_layer in enumerate(expected):
                by_layer[layer][0] = torch.cat((by_layer[layer][0], new_keys[row, None]))
                by_layer[layer][1] = torch.cat((by_layer[layer][1], new_values[row, None]))
                own = plain_attention(query[row], *by_layer[layer])
                torch.testing.assert_close(attended[row], own, atol=1e-5, rtol=1e-4)
        if drop is not None and drop < len(expected) and len(expected) > 1:
            cache.drop(drop)
            expected[drop] = expected[-1]
            expected.pop()
        for row, by_layer in enumerate(expected):
            for layer, parts in enumerate(by_layer):
                for held, part in zip(cache.entries(layer, row), parts, strict=True):
                    assert torch.equal(held, part.transpose(0, 1))


def plain_attention(query, keys, values):
    """[heads · head size] of one token, head by head."""
    output = []
    for head, vector in enumerate(query):
        weights = (keys[:, head // 2] @ vector / 2.0).softmax(dim=0)  # two heads share a KV head; 2 = sqrt(head size)
        output.append(weights @ values[:, head // 2])
    return torch.cat(output)


def test_a_layer_is_as_large_as_its_longest_sequence_needs():
    lengths, rooms = [[9, 4, 2], [5, 5, 5]], [1, 3]
    slots = 2 * (10 + 8 + 8)
    assert cache_bytes(SHAPE, lengths, rooms, itemsize=4) == 2 * slots * 2 * 4 * 4
    cache = KVCache(SHAPE, lengths, rooms, torch.float32, torch.device("cpu"))
    assert sum(buffer.nbytes for buffer in (*cache._keys, *cache._values)) == cache_bytes(SHAPE, lengths, rooms, 4)


def filled(lengths, rooms, seed=0):
    """A cache with random entries, and the same as lists of keys and values by row and layer."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(SHAPE, lengths, rooms, torch.float32, torch.device("cpu"))
    expected = []
    for row, by_layer in enumerate(lengths):
        expected.append([[torch.randn(n, 2, 4, generator=generator) for _ in range(2)] for n in by_layer])
        for layer, (keys, values) in enumerate(expected[row]):
            cache.write(layer, row, keys, values)
    return cache, expected


def grow(cache, expected, seed):
    """One token more for each row."""
    generator = torch.Generator().manual_seed(seed)
    cache.advance()
    for layer in range(SHAPE.layers):
        keys, values = (torch.randn(len(expected), 2, 4, generator=generator) for _ in range(2))
        query = torch.randn(len(expected), 4, 4, generator=generator)
        attended = cached_attention(query, *cache.append(layer, keys, values))
        for row, by_layer in enumerate(expected):
            old_keys, old_values = by_layer[layer]
            by_layer[layer] = [torch.cat((old_keys, keys[row, None])), torch.cat((old_values, values[row, None]))]
            own = plain_attention(query[row], *by_layer[layer])
            torch.testing.assert_close(attended[row], own, atol=1e-5, rtol=1e-4)


LENGTHS = [[5, 3, 3], [2, 2, 1], [4, 3, 2], [5, 3, 3], [1, 1, 1]]


def test_halves_go_on_by_themselves_in_the_same_memory():
    cache, expected = filled(LENGTHS, [6] * 5)
    grow(cache, expected, 1)
    first, second = cache.halves()
    assert (first.rows, second.rows) == (2, 3)
    assert first.bytes + second.bytes == cache.bytes
    addresses = [cache.buffers(0)[0].data_ptr(), cache.buffers(0)[0][2].data_ptr()]
    assert [half.buffers(0)[0].data_ptr() for half in (first, second)] == addresses
    mine, others = expected[:2], expected[2:]
    grow(second, others, 2)
    grow(first, mine, 3)
    second.drop(0)
    others[0] = others.pop()
    grow(second, others, 4)
    grow(first, mine, 5)
    assert [first.lengths(0), second.lengths(0)] == [[8, 5], [4, 8]]


def test_a_step_that_is_undone_leaves_nothing():
    cache, expected = filled(LENGTHS, [3] * 5)
    grow(cache, expected, 1)
    cache.advance()
    cache.append(0, torch.full((5, 2, 4), 99.0), torch.full((5, 2, 4), 99.0))
    cache.retreat()
    assert cache.lengths(0) == [6, 3, 5, 6, 2]
    grow(cache, expected, 2)
    cache.advance()
    cache.retreat()
    grow(cache, expected, 3)
