"""Prefill of several pruned sequences in one pass through the decoder layers."""

from __future__ import annotations

from collections.abc import Sequence as Several
from itertools import accumulate

import torch

from pipeline.engine.attention import received_attention
from pipeline.engine.attention_varlen import varlen_attention
from pipeline.engine.decisions import Decision, accept, decide, input_view, parting_layer, stage_at, view
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.families import Family
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.kv_retention import JUDGES, retained_entries
from pipeline.engine.packed import Packed, Span, Stretch, head, tail
from pipeline.engine.prefix import Live, Prefix, PrefixStore
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch, shares
from pipeline.engine.upload import upload
from pruning import Pruner, VideoTokens

# One tensor [n, heads, head size] for each sequence of a pack.
_Heads = Several[torch.Tensor]


class Prefill:
    """One pass over the prompts of several sequences.

    Stage 0 prunes the video tokens before the first layer; each later stage after the attention
    and before the MLP of its layer, which therefore caches keys and values at the length before.
    A prefix that sequences share goes through the layers by itself, first and once; in the pack they
    are then only what follows the video, until a stage looks at their prompts and they part.
    """

    def __init__(
        self,
        family: Family,
        pruner: Pruner,
        sequences: list[Sequence],
        cache: KVCache,
        first_row: int,
        prefixes: PrefixStore | None = None,
    ) -> None:
        """The sequences take the cache's rows from `first_row` on; `prefixes` are what other passes have left."""
        self._family = family
        self._decoder = family.decoder
        self._pruner = pruner
        self._sequences = sequences
        self._cache = cache
        self._first_row = first_row
        self._prefixes = PrefixStore(pruner) if prefixes is None else prefixes
        self._last = family.decoder.shape.layers - 1
        self._watch = Stopwatch(family.decoder.device)
        self._prefill_ms = 0.0
        self._prune_ms = 0.0

    def run(self, videos: list[EncodedVideo]) -> torch.Tensor:
        """Logits float32 [B, vocabulary] after the prompts.

        `videos` are the sequences' unpruned tokens: the list is emptied once they are pruned, so that their
        memory is free for the layers.
        """
        packed = self._pack(videos)
        videos.clear()
        for layer in range(self._last):
            self._run_layer(layer, packed)
        if any(self._is_last_traced(sequence) for sequence in self._sequences):
            self._run_layer(self._last, packed)
            logits = self._decoder.logits(packed.hidden[packed.last_rows([1] * len(packed.spans))])
        else:
            logits = self._run_last_layer(packed)
        self._attribute_times()
        return logits

    def _pack(self, videos: list[EncodedVideo]) -> Packed:
        """Prune at the input, prefill what is shared, and lay the sequences, or what is left of them, end to end."""
        sequences = self._sequences
        keys, prefixes = self._prefixes.take(sequences)
        new = [n for n, key in enumerate(keys) if key is None or (key not in prefixes and keys.index(key) == n)]
        inputs = {n: input_view(self._family, self._pruner, sequences[n], videos[n]) for n in new}
        decisions = self._decide(0, {n: sequences[n] for n in new}, inputs)
        for number, decision in decisions.items():
            if (key := keys[number]) is not None:
                prefixes[key] = self._prefill_prefix(sequences[number], videos[number], decision)
                self._prefixes.keep(key, prefixes[key])

        spans: list[Span] = []
        stretches: list[Stretch] = []
        for number, sequence in enumerate(sequences):
            if (key := keys[number]) is not None:
                prefix = prefixes[key]
                spans.append(Span.behind(sequence, prefix))
                for decision in prefix.decisions if number not in decisions else ():
                    accept(self._pruner, sequence, decision)
            else:
                spans.append(Span.around(sequence, decisions[number].kept))
                stretches.append(head(self._family, sequence, videos[number], decisions[number].kept))
            stretches.append(tail(self._family, sequence))
        return Packed.lay(self._decoder, stretches, spans)

    def _prefill_prefix(self, sequence: Sequence, video: EncodedVideo, first: Decision) -> Prefix:
        """What this sequence shares with others, from the decision at the input on."""
        span = Span.around(sequence, first.kept, has_tail=False)
        packed = Packed.lay(self._decoder, [head(self._family, sequence, video, first.kept)], [span])
        prefix = Prefix(span.before)
        prefix.note(first)
        parting = parting_layer(self._pruner, sequence)
        for layer in range(self._last + 1):
            if layer == self._last and not self._is_last_traced(sequence):
                # nothing reads the tokens themselves any more
                normed = self._decoder.attention_input(layer, packed.hidden)
                prefix.cache(*self._decoder.keys_values(layer, normed, packed.rope))
                break
            queries, keys, values = self._attend(layer, packed)
            prefix.cache(keys[0], values[0])
            if layer == parting:
                prefix.end = Live(packed.hidden, packed.rope, span.index, span.state)
                break
            for decision in self._prune(layer, packed, queries, keys):
                prefix.note(decision)
            del queries, keys, values  # room for the MLP
            packed.hidden = self._decoder.add_mlp(layer, packed.hidden)
        return prefix

    def _run_layer(self, layer: int, packed: Packed) -> None:
        """One decoder layer over all live tokens, with the stages that start in it."""
        queries, keys, values = self._attend(layer, packed)
        self._write_cache(layer, packed, queries, keys, values)
        packed.part(layer)
        self._prune(layer, packed, queries, keys)
        del queries, keys, values  # room for the MLP
        packed.hidden = self._decoder.add_mlp(layer, packed.hidden)

    def _attend(self, layer: int, packed: Packed) -> tuple[_Heads, _Heads, _Heads]:
        """Add a layer's attention; returns the queries in the pack, and all keys and values, of each sequence."""
        decoder = self._decoder
        normed = decoder.attention_input(layer, packed.hidden)
        query = decoder.queries(layer, normed, packed.rope)
        key, value, lengths = packed.whole(layer, *decoder.keys_values(layer, normed, packed.rope))
        attended = varlen_attention(query, key, value, packed.lengths, lengths).flatten(1)
        packed.hidden = decoder.add_attention(layer, packed.hidden, attended)
        return query.split(packed.lengths), key.split(lengths), value.split(lengths)

    def _is_last_traced(self, sequence: Sequence) -> bool:
        """Whether who leaves in the last layer, which changes no answer, has to be known for a trace."""
        return sequence.tracer is not None and self._last in sequence.plan.layers[1:]

    def _run_last_layer(self, packed: Packed) -> torch.Tensor:
        """The last layer and the logits: keys and values of all tokens, the rest for the last ones only.

        Nothing reads the other tokens any more, so a stage that starts here has nothing to do.
        """
        decoder, layer = self._decoder, self._last
        normed = decoder.attention_input(layer, packed.hidden)
        key, value, lengths = packed.whole(layer, *decoder.keys_values(layer, normed, packed.rope))
        # More than the last token are asked only where the cache is to keep what they attend to.
        asked = [min(span.after, JUDGES) if span.sequence.kv_retention < 1 else 1 for span in packed.spans]
        rows = packed.last_rows(asked)
        query = decoder.queries(layer, normed[rows], packed.rope.select(rows))
        attended = varlen_attention(query, key, value, asked, lengths).flatten(1)
        self._write_cache(layer, packed, query.split(asked), key.split(lengths), value.split(lengths))
        last = upload([end - 1 for end in accumulate(asked)], rows.device)
        hidden = decoder.add_attention(layer, packed.hidden[rows[last]], attended[last])
        return decoder.logits(decoder.add_mlp(layer, hidden))

    def _write_cache(self, layer: int, packed: Packed, queries: _Heads, keys: _Heads, values: _Heads) -> None:
        """What the cache keeps of a layer's keys and values, into the sequences' rows."""
        for number, (span, query, key, value) in enumerate(zip(packed.spans, queries, keys, values, strict=True)):
            sequence = span.sequence
            if sequence.kv_retention < 1:
                count = sequence.cached_tokens[layer] - sequence.text_tokens
                entries = retained_entries(query, key, len(sequence.prompt.before), span.after, count)
                key, value = key[entries], value[entries]
            self._cache.write(layer, self._first_row + number, key, value)

    def _prune(self, layer: int, packed: Packed, queries: _Heads, keys: _Heads) -> list[Decision]:
        """Prune those sequences whose plan starts a stage at this layer and keeps fewer tokens than live."""
        stages: dict[int, list[int]] = {}
        for number, span in enumerate(packed.spans):
            if (stage := stage_at(span.sequence, layer, span.video)) is not None:
                stages.setdefault(stage, []).append(number)
        decisions: dict[int, Decision] = {}
        for stage, numbers in stages.items():
            views: dict[int, VideoTokens] = {}
            for number in numbers:
                span = packed.spans[number]
                views[number] = view(span.sequence, packed.hidden[span.video_rows], span.index, span.state)
                if self._pruner.needs.last_token_attention:
                    received = received_attention(queries[number][-1:], keys[number])
                    views[number].attention = received[span.before : span.before + span.video]
            decisions |= self._decide(stage, {n: packed.spans[n].sequence for n in numbers}, views)
        if decisions:
            packed.keep(decisions)
        return list(decisions.values())

    def _decide(self, stage: int, sequences: dict[int, Sequence], views: dict[int, VideoTokens]) -> dict[int, Decision]:
        """Ask the pruner about the videos of some sequences, by their number in the pack, and take the time."""
        self._prefill_ms += self._watch.lap()
        decisions = decide(self._pruner, stage, list(sequences.values()), list(views.values())) if views else []
        self._prune_ms += self._watch.lap()
        return dict(zip(views, decisions, strict=True))

    def _attribute_times(self) -> None:
        """Divide the pass's time among its sequences: pruning by N, the rest by tokens over all layers."""
        self._prefill_ms += self._watch.lap()
        prune_ms = shares(self._prune_ms, [s.grid.tokens for s in self._sequences])
        prefill_ms = shares(self._prefill_ms, [sum(s.entering_tokens) for s in self._sequences])
        for sequence, prune, rest in zip(self._sequences, prune_ms, prefill_ms, strict=True):
            sequence.prune_ms += prune
            sequence.prefill_ms += rest
