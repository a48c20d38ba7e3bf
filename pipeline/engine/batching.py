"""Which requests of a call run together: decode batches, and prefill packs inside them."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.engine.kv_cache import cache_bytes
from pipeline.engine.sequence import Sequence
from pruning.cost import DecoderShape

_MAX_BATCH = 64
_CACHE_BYTES_CPU = 2**30
_CACHE_BYTES_CUDA = 8 * 2**30
_PREFILL_TOKENS = 16_384


def batches(sequences: list[Sequence], shape: DecoderShape, itemsize: int, is_cuda: bool) -> Iterator[list[Sequence]]:
    """Cut a call into batches that decode together and whose KV cache fits its share of memory.

    Long sequences come first and those of similar length together, so that little of the cache is
    padding; sequences about one video stay neighbours, so that its tokens need not be kept long.
    """
    limit = _CACHE_BYTES_CUDA if is_cuda else _CACHE_BYTES_CPU
    longest: dict[str, int] = {}
    for sequence in sequences:
        longest[sequence.video] = max(longest.get(sequence.video, 0), sequence.cached_tokens[0])
    batch: list[Sequence] = []
    for sequence in sorted(sequences, key=lambda s: (-longest[s.video], s.video, s.number)):
        grown = [*batch, sequence]
        size = cache_bytes(shape, [s.cached_tokens for s in grown], [s.request.max_new_tokens for s in grown], itemsize)
        if batch and (len(grown) > _MAX_BATCH or size > limit):
            yield batch
            grown = [sequence]
        batch = grown
    if batch:
        yield batch


def packs(batch: list[Sequence]) -> Iterator[list[Sequence]]:
    """Cut a batch into runs of neighbours that share a prefill pass, by the tokens that enter layer 0."""
    pack: list[Sequence] = []
    tokens = 0
    for sequence in batch:
        entering = sequence.entering_tokens[0]
        if pack and tokens + entering > _PREFILL_TOKENS:
            yield pack
            pack, tokens = [], 0
        pack.append(sequence)
        tokens += entering
    if pack:
        yield pack
