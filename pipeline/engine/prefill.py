"""Prefill of several pruned sequences in one pass through the decoder layers."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.engine.attention import cached_attention, causal_attention, last_token_attention
from pipeline.engine.families import Family
from pipeline.engine.kv_cache import KVCache
from pipeline.engine.packed import Packed, Span
from pipeline.engine.sequence import Sequence
from pipeline.engine.stopwatch import Stopwatch, shares
from pruning import Kept, Pruner, VideoTokens


class Prefill:
    """One pass over the prompts of several sequences.

    Stage 0 prunes the video tokens before the first layer; each later stage after the attention
    and before the MLP of its layer, which therefore caches keys and values at the length before.
    """

    def __init__(
        self, family: Family, pruner: Pruner, sequences: list[Sequence], cache: KVCache, first_row: int
    ) -> None:
        """The sequences take the cache's rows from `first_row` on."""
        self._family = family
        self._decoder = family.decoder
        self._pruner = pruner
        self._sequences = sequences
        self._cache = cache
        self._first_row = first_row
        self._states: list[Any] = [None] * len(sequences)
        self._watch = Stopwatch(family.decoder.device)
        self._prefill_ms = 0.0
        self._prune_ms = 0.0

    def run(self, videos: list[torch.Tensor]) -> torch.Tensor:
        """Logits float32 [B, vocabulary] after the prompts; `videos` are unpruned video tokens [N, hidden]."""
        packed = self._pack(videos)
        for layer in range(self._decoder.shape.layers - 1):
            self._run_layer(layer, packed)
        logits = self._run_last_layer(packed)
        self._attribute_times()
        return logits

    def _pack(self, videos: list[torch.Tensor]) -> Packed:
        """Prune at the input and put the prompts around what is left."""
        device = self._decoder.device
        whole = [torch.arange(video.shape[0], device=device) for video in videos]
        everyone = range(len(self._sequences))
        kept = self._decide(0, list(everyone), list(videos), whole, [None] * len(videos))
        spans: list[Span] = []
        hidden: list[torch.Tensor] = []
        positions: list[torch.Tensor] = []
        start = 0
        for number, sequence in enumerate(self._sequences):
            before, after = self._family.embed_prompt(sequence.prompt)
            index = kept[number].keep
            values = kept[number].values
            video = videos[number][index] if values is None else values
            hidden += (before, video, after)
            position = self._family.positions(sequence.prompt, sequence.grid)
            first, end = before.shape[0], before.shape[0] + sequence.grid.tokens
            positions += (position[:first], position[first:end][index], position[end:])
            spans.append(Span(start, before.shape[0], video.shape[0], after.shape[0], index))
            start += spans[-1].length
        return Packed(torch.cat(hidden), self._decoder.rope(torch.cat(positions)), spans)

    def _run_layer(self, layer: int, packed: Packed) -> None:
        """One decoder layer over all live tokens, with the stages that start in it."""
        decoder = self._decoder
        normed = decoder.attention_input(layer, packed.hidden)
        query = decoder.queries(layer, normed, packed.rope)
        key, value = decoder.keys_values(layer, normed, packed.rope)
        self._write_cache(layer, packed, key, value)
        attended = causal_attention(query, key, value, packed.lengths)
        packed.hidden = decoder.add_attention(layer, packed.hidden, attended)
        if layer > 0:
            self._prune_layer(layer, packed, query, key)
        packed.hidden = decoder.add_mlp(layer, packed.hidden)

    def _run_last_layer(self, packed: Packed) -> torch.Tensor:
        """The last layer and the logits: keys and values of all tokens, the rest for the last ones only.

        Nothing reads the other tokens any more, so a stage that starts here has nothing to do.
        """
        decoder = self._decoder
        layer = decoder.shape.layers - 1
        normed = decoder.attention_input(layer, packed.hidden)
        key, value = decoder.keys_values(layer, normed, packed.rope)
        self._write_cache(layer, packed, key, value)
        last = packed.last_rows()
        query = decoder.queries(layer, normed[last], packed.rope.select(last))
        attended = [
            cached_attention(
                query[b, None], key[span.rows].transpose(0, 1)[None], value[span.rows].transpose(0, 1)[None]
            )
            for b, span in enumerate(packed.spans)
        ]
        hidden = decoder.add_attention(layer, packed.hidden[last], torch.cat(attended))
        return decoder.logits(decoder.add_mlp(layer, hidden))

    def _write_cache(self, layer: int, packed: Packed, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keys and values, [S, KV heads, head size], into the sequences' rows."""
        for number, span in enumerate(packed.spans):
            self._cache.write(layer, self._first_row + number, key[span.rows], value[span.rows])

    def _prune_layer(self, layer: int, packed: Packed, query: torch.Tensor, key: torch.Tensor) -> None:
        """Prune those sequences whose plan starts a stage at this layer and keeps fewer tokens than live."""
        stages: dict[int, list[int]] = {}
        for number, (sequence, span) in enumerate(zip(self._sequences, packed.spans, strict=True)):
            plan = sequence.plan
            if layer in plan.layers and plan.counts[plan.layers.index(layer)] < span.video:
                stages.setdefault(plan.layers.index(layer), []).append(number)
        kept: dict[int, Kept] = {}
        for stage, numbers in stages.items():
            spans = [packed.spans[b] for b in numbers]
            attention: list[torch.Tensor | None] = [None] * len(spans)
            if self._pruner.needs.last_token_attention:
                attention = [_video_attention(span, query, key) for span in spans]
            hidden = [packed.hidden[span.video_rows] for span in spans]
            kept |= self._decide(stage, numbers, hidden, [span.index for span in spans], attention)
        if kept:
            packed.keep(kept)

    def _decide(
        self,
        stage: int,
        numbers: list[int],
        hidden: list[torch.Tensor],
        index: list[torch.Tensor],
        attention: list[torch.Tensor | None],
    ) -> dict[int, Kept]:
        """Ask the pruner about the videos of the sequences `numbers`, and hold it to the plan."""
        self._prefill_ms += self._watch.lap()
        sequences = [self._sequences[b] for b in numbers]
        videos = [
            VideoTokens(s.grid, s.plan, h, i, s.request.seed, attention=a, state=self._states[b])
            for b, s, h, i, a in zip(numbers, sequences, hidden, index, attention, strict=True)
        ]
        decisions = self._pruner.prune_layer(stage, videos) if stage else self._pruner.prune_input(videos)
        for number, sequence, decision in zip(numbers, sequences, decisions, strict=True):
            if decision.keep.shape[0] != sequence.plan.counts[stage]:
                raise RuntimeError(
                    f"pruner {self._pruner.name!r} kept {decision.keep.shape[0]} tokens at stage {stage}, "
                    f"its plan says {sequence.plan.counts[stage]}"
                )
            self._states[number] = decision.state
            if decision.segment_starts is not None:
                sequence.segments = len(decision.segment_starts)
        self._prune_ms += self._watch.lap()
        return dict(zip(numbers, decisions, strict=True))

    def _attribute_times(self) -> None:
        """Divide the pass's time among its sequences: pruning by N, the rest by tokens over all layers."""
        self._prefill_ms += self._watch.lap()
        prune_ms = shares(self._prune_ms, [s.grid.tokens for s in self._sequences])
        prefill_ms = shares(self._prefill_ms, [sum(s.cached_tokens) for s in self._sequences])
        for sequence, prune, rest in zip(self._sequences, prune_ms, prefill_ms, strict=True):
            sequence.prune_ms += prune
            sequence.prefill_ms += rest


def _video_attention(span: Span, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The last prompt token's attention to a sequence's live video tokens, float32 [video]."""
    attention = last_token_attention(query[span.rows][-1], key[span.rows])
    return attention[span.before : span.before + span.video]
