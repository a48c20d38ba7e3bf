"""Token by token generation for a batch of sequences, until each has finished."""

from __future__ import annotations

import torch

from pipeline.engine.attention import cached_attention
from pipeline.engine.decoder import Decoder
from pipeline.engine.families import Family
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.sampling import choose_tokens
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch


def generate(family: Family, sequences: list[Sequence], cache: KVCache, logits: torch.Tensor) -> None:
    """Fill the sequences' `token_ids`, starting from the prefill's logits float32 [B, vocabulary].

    Row b of the cache and of the logits belongs to `sequences[b]`. A sequence leaves the batch when
    it finishes; a step's time is divided equally among those that took part in it.
    """
    watch = Stopwatch(family.decoder.device)
    live = list(sequences)
    while True:
        chosen = choose_tokens(logits, [sequence.sampler for sequence in live])
        _force(live, logits, chosen)
        took_part = list(live)
        for row in reversed(range(len(took_part))):
            sequence = took_part[row]
            sequence.token_ids.append(chosen[row])
            # an end token inside a forced answer is a token like others
            is_last = len(sequence.token_ids) == sequence.request.max_new_tokens
            sequence.is_stopped = family.is_end(chosen[row]) and (is_last or not sequence.request.forced_token_ids)
            if sequence.is_finished:
                cache.drop(row)
                live[row] = live[-1]
                live.pop()
        if live:
            logits = decode_step(
                family.decoder,
                cache,
                tokens=[sequence.token_ids[-1] for sequence in live],
                positions=[sequence.next_position for sequence in live],
            )
            for sequence in live:
                sequence.next_position += 1
        elapsed = watch.lap()
        for sequence in took_part:
            sequence.generate_ms += elapsed / len(took_part)
        if not live:
            return


def _force(sequences: list[Sequence], logits: torch.Tensor, chosen: list[int]) -> None:
    """Put forced tokens in the place of `chosen` ones, and note their log-probabilities by `logits`."""
    forced = {
        row: sequence.request.forced_token_ids[len(sequence.token_ids)]
        for row, sequence in enumerate(sequences)
        if sequence.request.forced_token_ids
    }
    if not forced:
        return
    rows, tokens = (torch.tensor(list(ids), device=logits.device) for ids in (forced, forced.values()))
    logprobs = logits[rows].log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    for (row, token), logprob in zip(forced.items(), logprobs.tolist(), strict=True):
        chosen[row] = token
        sequences[row].logprobs.append(logprob)


def decode_step(decoder: Decoder, cache: KVCache, tokens: list[int], positions: list[int]) -> torch.Tensor:
    """Append one token to each of the cache's rows; returns the next logits float32 [B, vocabulary]."""
    hidden = decoder.embed(tokens)
    rope = decoder.rope(torch.tensor(positions, dtype=torch.int64, device=decoder.device))
    cache.advance()
    for layer in range(decoder.shape.layers):
        normed = decoder.attention_input(layer, hidden)
        query = decoder.queries(layer, normed, rope)
        keys, values, mask = cache.append(layer, *decoder.keys_values(layer, normed, rope))
        hidden = decoder.add_attention(layer, hidden, cached_attention(query, keys, values, mask))
        hidden = decoder.add_mlp(layer, hidden)
    return decoder.logits(hidden)
