"""The static buffers of a decode step, its padded sizes, and what happens where it cannot be captured."""

import ctypes
import warnings
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from pipeline.engine import decode_graph
from pipeline.engine.decode_graph import SIZES, DecodeGraph, padded_size

LAYERS, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 3, 4, 2, 8, 11
WEIGHTS = torch.randn(LAYERS, 3, HEADS * HEAD_SIZE, HEADS * HEAD_SIZE, generator=torch.Generator().manual_seed(0)) / 5
EMBEDDINGS = torch.randn(VOCABULARY, HEADS * HEAD_SIZE, generator=torch.Generator().manual_seed(1))


@cache
def parameters(device):
    return EMBEDDINGS.to(device), WEIGHTS.to(device)


def step(tokens, positions, attend):
    """A decoder of attention layers only, whose positions are added to the embeddings."""
    embeddings, weights = parameters(tokens.device)
    hidden = embeddings[tokens] + positions[:, None] / 100
    for layer, (to_query, to_key, to_value) in enumerate(weights):
        query = (hidden @ to_query).view(-1, HEADS, HEAD_SIZE)
        key, value = ((hidden @ weight)[:, : KV_HEADS * HEAD_SIZE] for weight in (to_key, to_value))
        heads = (-1, KV_HEADS, HEAD_SIZE)
        hidden = hidden + attend(layer, query, key.reshape(heads), value.reshape(heads))
    return hidden @ embeddings.T


class Slab:
    """Rows of random entries; layer l holds l entries fewer, and nothing but NaN behind them."""

    def __init__(self, lengths, room, seed, device="cpu"):
        self.rows = len(lengths)
        self._lengths = [[length - layer for length in lengths] for layer in range(LAYERS)]
        generator = torch.Generator().manual_seed(seed)
        self.all_buffers = []
        for layer in self._lengths:
            buffers = torch.randn(2, self.rows, KV_HEADS, max(layer) + room, HEAD_SIZE, generator=generator)
            for row, length in enumerate(layer):
                buffers[:, row, :, length:] = torch.nan
            self.all_buffers.append(buffers.to(device))

    def buffers(self, layer):
        return tuple(self.all_buffers[layer])

    def lengths(self, layer):
        return self._lengths[layer]

    def advance(self):
        self._lengths = [[length + 1 for length in layer] for layer in self._lengths]

    def drop_last(self):
        self.rows -= 1
        self._lengths = [layer[:-1] for layer in self._lengths]


def floats_at(address, *shape):
    count = torch.Size(shape).numel()
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32).view(shape)


def attend_at_addresses(query, key, value, key_pointers, value_pointers, slots, lengths):
    """What the Triton kernel does, by plain memory accesses."""
    output = torch.zeros(query.shape[0], HEADS * HEAD_SIZE)
    for row, length in enumerate(lengths.tolist()):
        if length == 0:
            continue
        shape = (KV_HEADS, int(slots[row]), HEAD_SIZE)
        keys, values = (floats_at(int(pointers[row]), *shape) for pointers in (key_pointers, value_pointers))
        keys[:, length - 1], values[:, length - 1] = key[row], value[row]
        own = query[row][None, :, None], keys[None, :, :length], values[None, :, :length]
        output[row] = F.scaled_dot_product_attention(*own, enable_gqa=True).flatten()
    return output


class Recorder:
    """Stands for CUDA graphs: warms up, and writes each result into the memory of the first."""

    def __init__(self):
        self.recorded = 0
        self.replayed = 0

    def __call__(self, function):
        function()
        result = function()
        self.recorded += 1

        def replay():
            self.replayed += 1
            return result.copy_(function())

        return replay


def alone(entries, tokens, position):
    """Logits of a sequence by itself, [KV heads, n, head size] each in `entries`, which grow by `tokens`."""
    for token in tokens:

        def attend(layer, query, key, value):
            entries[layer] = torch.cat((entries[layer], torch.stack((key, value)).transpose(1, 2)), dim=2)
            keys, values = entries[layer]
            own = query[0][None, :, None], keys[None], values[None]
            return F.scaled_dot_product_attention(*own, enable_gqa=True).flatten()[None]

        logits = step(torch.tensor([token]), torch.tensor([position]), attend)[0]
        position += 1
    return logits


@pytest.fixture
def slabs(monkeypatch):
    monkeypatch.setattr(decode_graph, "ragged_decode_attention", attend_at_addresses)
    return [Slab([9, 4], 5, seed=2), Slab([17], 3, seed=3)]


def entries_of(slab, row):
    return [
        torch.stack([buffer[row, :, : slab.lengths(layer)[row]] for buffer in slab.buffers(layer)]).clone()
        for layer in range(LAYERS)
    ]


@pytest.mark.parametrize("has_capture", [True, False])
@pytest.mark.filterwarnings("ignore:decoding runs without CUDA graphs")
def test_rows_of_several_slabs_decode_as_alone(slabs, has_capture):
    before = [entries_of(slab, row) for slab in slabs for row in range(slab.rows)]
    capture = Recorder()
    graph = DecodeGraph(step, LAYERS, torch.device("cpu"), capture if has_capture else None)
    graph.place(slabs, [20, 30, 40])
    graph.step([1, 2, 3])
    logits = graph.step([4, 5, 6])
    assert (capture.recorded, capture.replayed) == ((1, 2) if has_capture else (0, 0))
    assert logits.shape == (3, VOCABULARY)
    fed = zip(before, ([1, 4], [2, 5], [3, 6]), (20, 30, 40), strict=True)
    torch.testing.assert_close(logits, torch.stack([alone(*sequence) for sequence in fed]))


def test_rows_leave_and_others_come(slabs):
    first, second = slabs
    staying, coming = entries_of(first, 0), entries_of(second, 0)
    capture = Recorder()
    graph = DecodeGraph(step, LAYERS, torch.device("cpu"), capture)
    graph.place([first], [20, 30])
    graph.step([1, 2])
    first.advance()
    first.drop_last()
    graph.place([first, second], [21, 40])
    logits = graph.step([3, 4])
    assert capture.recorded == 1, "two rows again: the same graph at other addresses"
    torch.testing.assert_close(logits, torch.stack([alone(staying, [1, 3], 20), alone(coming, [4], 40)]))


def test_recording_writes_into_no_cache(slabs):
    before = [buffers.clone() for slab in slabs for buffers in slab.all_buffers]

    def record(function):
        function()
        after = [buffers for slab in slabs for buffers in slab.all_buffers]
        same = zip(before, after, strict=True)
        assert all(torch.equal(old.nan_to_num(7.0), new.nan_to_num(7.0)) for old, new in same)
        return function

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what a failed recording would give
        DecodeGraph(step, LAYERS, torch.device("cpu"), record).place(slabs, [20, 30, 40])


def test_without_capture_one_warning_and_the_step_as_it_is(slabs):
    def fail(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    graph = DecodeGraph(step, LAYERS, torch.device("cpu"), fail)
    with pytest.warns(UserWarning, match="without CUDA graphs, capturing one fails: operation not permitted"):
        graph.place(slabs, [20, 30, 40])
    assert graph.step([1, 2, 3]).isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph.place(slabs[1:], [41])


def test_a_step_that_fails_can_be_placed_and_repeated(slabs):
    before = [entries_of(slab, row) for slab in slabs for row in range(slab.rows)]
    is_failing = False

    def sometimes(tokens, positions, attend):
        logits = step(tokens, positions, attend)
        if is_failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    graph = DecodeGraph(sometimes, LAYERS, torch.device("cpu"), Recorder())
    graph.place(slabs, [20, 30, 40])
    graph.step([1, 2, 3])
    for slab in slabs:
        slab.advance()
    is_failing = True
    with pytest.raises(torch.OutOfMemoryError):
        graph.step([4, 5, 6])
    is_failing = False
    graph.place(slabs, [21, 31, 41])
    logits = graph.step([4, 5, 6])
    fed = zip(before, ([1, 4], [2, 5], [3, 6]), (20, 30, 40), strict=True)
    torch.testing.assert_close(logits, torch.stack([alone(*sequence) for sequence in fed]))


def test_more_rows_than_the_largest_size_are_launched(slabs):
    many = Slab([4] * (SIZES[-1] + 1), 2, seed=4)
    before = [entries_of(many, row) for row in (0, SIZES[-1])]
    capture = Recorder()
    graph = DecodeGraph(step, LAYERS, torch.device("cpu"), capture)
    graph.place([many], [5] * many.rows)
    logits = graph.step([7] * many.rows)
    assert capture.recorded == 0
    expected = torch.stack([alone(entries, [7], 5) for entries in before])
    torch.testing.assert_close(logits[[0, -1]], expected)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 48), (64, 64)])
def test_batches_are_padded_to_the_next_size(rows, size):
    assert padded_size(rows) == size


def test_beyond_the_largest_size_nothing_is_captured():
    assert padded_size(SIZES[-1] + 1) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_graph_repeats_the_step():
    slabs = [Slab([9, 4], 5, seed=2, device="cuda"), Slab([17], 3, seed=3, device="cuda")]
    before = [[part.cpu() for part in entries_of(slab, row)] for slab in slabs for row in range(slab.rows)]
    graph = DecodeGraph(step, LAYERS, torch.device("cuda"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph.place(slabs, [20, 30, 40])
    graph.step([1, 2, 3])
    logits = graph.step([4, 5, 6]).cpu()
    fed = zip(before, ([1, 4], [2, 5], [3, 6]), (20, 30, 40), strict=True)
    torch.testing.assert_close(logits, torch.stack([alone(*sequence) for sequence in fed]), atol=1e-3, rtol=1e-3)
