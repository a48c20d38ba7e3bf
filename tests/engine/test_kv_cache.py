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
