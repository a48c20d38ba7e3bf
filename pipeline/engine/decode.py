"""One token more for every running sequence, whichever caches they lie in."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from collections.abc import Sequence as Several
from functools import partial

import torch

from pipeline.engine.attention import cached_attention
from pipeline.engine.decode_attention_triton import can_decode_ragged
from pipeline.engine.decode_graph import DecodeGraph
from pipeline.engine.decoder import Decoder
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.sampling import choose_tokens
from pipeline.engine.sequence import Sequence

# (layer, query [B, heads, head size], key and value [B, KV heads, head size]) to [B, heads · head size]: stores
# the new keys and values, and attends to all that are stored.
DecodeAttention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

# (slabs, the newest token of each of their rows, its position) to logits float32 [B, vocabulary]
DecodeStep = Callable[[Several[KVCache], Several[int], Several[int]], torch.Tensor]


def make_decode_step(decoder: Decoder) -> DecodeStep:
    """The fastest way that the decoder's device has to do `decode_step`; it may keep buffers from call to call."""
    if can_decode_ragged(decoder.device, decoder.dtype, decoder.shape.head_size):
        return GraphedStep(decoder)
    return partial(decode_step, decoder)


def decode_step(
    decoder: Decoder, slabs: Several[KVCache], tokens: Several[int], positions: Several[int]
) -> torch.Tensor:
    """Append one token to each row of the slabs, in order; returns the next logits float32 [B, vocabulary].

    If it fails the slabs are as they were before.
    """
    for slab in slabs:
        slab.advance()
    try:
        ids, places = (torch.tensor(ids, dtype=torch.int64, device=decoder.device) for ids in (tokens, positions))
        return decode_layers(decoder, ids, places, slab_attention(slabs))
    except BaseException:
        for slab in slabs:
            slab.retreat()
        raise


def decode_layers(
    decoder: Decoder, tokens: torch.Tensor, positions: torch.Tensor, attention: DecodeAttention
) -> torch.Tensor:
    """All layers for one token a row, `tokens` and `positions` int64 [B]; returns logits float32 [B, vocabulary]."""
    hidden = decoder.embed(tokens)
    rope = decoder.rope(positions)
    for layer in range(decoder.shape.layers):
        normed = decoder.attention_input(layer, hidden)
        query = decoder.queries(layer, normed, rope)
        attended = attention(layer, query, *decoder.keys_values(layer, normed, rope))
        hidden = decoder.add_attention(layer, hidden, attended)
        hidden = decoder.add_mlp(layer, hidden)
    return decoder.logits(hidden)


def slab_attention(slabs: Several[KVCache]) -> DecodeAttention:
    """Attention of the rows of several slabs, slab by slab."""

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        if len(slabs) == 1:
            return cached_attention(query, *slabs[0].append(layer, key, value))
        attended = []
        first = 0
        for slab in slabs:
            rows = slice(first, first + slab.rows)
            attended.append(cached_attention(query[rows], *slab.append(layer, key[rows], value[rows])))
            first += slab.rows
        return torch.cat(attended)

    return attend


class GraphedStep:
    """`decode_step` through CUDA graphs: where the rows lie is told only when one came, left or moved."""

    def __init__(self, decoder: Decoder) -> None:
        """Graphs are captured when batches of their size first come."""
        self._graph = DecodeGraph(partial(decode_layers, decoder), decoder.shape.layers, decoder.device)
        self._placed: list[tuple[weakref.ref[KVCache], int]] | None = None

    def __call__(self, slabs: Several[KVCache], tokens: Several[int], positions: Several[int]) -> torch.Tensor:
        """As `decode_step`."""
        if not self._are_in_place(slabs):
            self._graph.place(slabs, positions)
        self._placed = None
        # The next call writes over the graph's own logits, and it may be that of another stream.
        logits = self._graph.step(tokens).clone()
        for slab in slabs:
            slab.advance()
        self._placed = [(weakref.ref(slab), slab.rows) for slab in slabs]
        return logits

    def _are_in_place(self, slabs: Several[KVCache]) -> bool:
        """Whether all rows are where they were at the last step: rows only move when one leaves."""
        if self._placed is None or len(self._placed) != len(slabs):
            return False
        return all(ref() is slab and rows == slab.rows for (ref, rows), slab in zip(self._placed, slabs, strict=True))


def next_tokens(sequences: Several[Sequence], logits: torch.Tensor) -> list[int]:
    """Each sequence's next token by its row of `logits`, float32 [B, vocabulary].

    A forced one takes the place of the one that would be chosen, and the sequence notes its
    log-probability. If it fails the sequences are as they were before.
    """
    forced = {
        row: int(sequence.request.forced_token_ids[len(sequence.token_ids)])
        for row, sequence in enumerate(sequences)
        if sequence.request.forced_token_ids
    }
    logprobs: list[float] = []
    if forced:
        rows, tokens = (torch.tensor(list(ids), device=logits.device) for ids in (forced, forced.values()))
        logprobs = logits[rows].log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0].tolist()
    chosen = choose_tokens(logits, [sequence.sampler for sequence in sequences])
    for (row, token), logprob in zip(forced.items(), logprobs, strict=True):
        chosen[row] = token
        sequences[row].logprobs.append(logprob)
    return chosen
