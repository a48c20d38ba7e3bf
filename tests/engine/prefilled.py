"""Run prefill by itself and look at what it leaves behind: kept tokens, cache, logits, rows that were computed."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch

from pipeline.engine.admission import admit
from pipeline.engine.decoder import Decoder
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.prefill import Prefill
from pipeline.engine.sequence import Sequence


@dataclass
class Prefilled:
    """One sequence after its prefill: `cache` holds keys and values by layer, `logits` [V] are of its first token."""

    sequence: Sequence
    cache: list[tuple[torch.Tensor, torch.Tensor]]
    logits: torch.Tensor

    @property
    def trace(self):
        return self.sequence.tracer.finish(self.sequence.plan.layers)


def admitted(llm, requests, pruner, retention=1.0, kv_retention=1.0):
    """Sequences of requests, numbered in order."""
    sequences = [admit(llm._family, pruner, number, request, retention) for number, request in enumerate(requests)]
    for sequence in sequences:
        sequence.kv_retention = kv_retention
    return sequences


@torch.inference_mode()
def prefill(llm, pruner, sequences, prefixes=None):
    """One pass over sequences, in one pack."""
    decoder = llm._family.decoder
    videos = llm.encode([s.request.frames for s in sequences], attention=pruner.needs.encoder_attention)
    lengths, rooms = [s.cached_tokens for s in sequences], [1] * len(sequences)
    cache = KVCache(decoder.shape, lengths, rooms, decoder.dtype, decoder.device)
    logits = Prefill(llm._family, pruner, sequences, cache, 0, prefixes).run(videos)
    cache.shorten([s.cached_tokens for s in sequences])
    layers = range(decoder.shape.layers)
    return [
        Prefilled(
            sequence, [tuple(part.clone() for part in cache.entries(layer, row)) for layer in layers], logits[row]
        )
        for row, sequence in enumerate(sequences)
    ]


@contextmanager
def counted_rows():
    """Counts, by layer, the tokens whose keys and values are computed."""
    rows = Counter()
    keys_values = Decoder.keys_values

    def counting(decoder, layer, normed, rope):
        rows[layer] += normed.shape[0]
        return keys_values(decoder, layer, normed, rope)

    with patch.object(Decoder, "keys_values", counting):
        yield rows
