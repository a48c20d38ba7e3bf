"""Prefill of several pruned sequences in one pass through the decoder layers."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.engine.attention import cached_attention, causal_attention, last_token_attention
from pipeline.engine.encoded import EncodedVideo
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

    def run(self, videos: list[EncodedVideo]) -> torch.Tensor:
        """Logits float32 [B, vocabulary] after the prompts; `videos` are the sequences' unpruned tokens."""
        packed = self._pack(videos)
        last = self._decoder.shape.layers - 1
        for layer in range(last):
            self._run_layer(layer, packed)
        if any(sequence.tracer and last in sequence.plan.layers[1:] for sequence in self._sequences):
            self._run_layer(last, packed)  # whoever leaves here changes no answer, but belongs into the trace
            logits = self._decoder.logits(packed.hidden[packed.last_rows()])
        else:
            logits = self._run_last_layer(packed)
        self._attribute_times()
        return logits

    def _pack(self, videos: list[EncodedVideo]) -> Packed:
        """Prune at the input and put the prompts around what is left."""
        kept = self._decide(0, {number: self._input(number, video) for number, video in enumerate(videos)})
        spans: list[Span] = []
        hidden: list[torch.Tensor] = []
        positions: list[torch.Tensor] = []
        start = 0
        for number, sequence in enumerate(self._sequences):
            before, after = self._family.embed_prompt(sequence.prompt)
            index = kept[number].keep
            values = kept[number].values
            video = videos[number].tokens[index] if values is None else values
            hidden += (before, video, after)
            position = self._family.positions(sequence.prompt, sequence.grid)
            first, end = before.shape[0], before.shape[0] + sequence.grid.tokens
            positions += (position[..., :first], position[..., first:end][..., index], position[..., end:])
            spans.append(Span(start, before.shape[0], video.shape[0], after.shape[0], index))
            start += spans[-1].length
        return Packed(torch.cat(hidden), self._decoder.rope(torch.cat(positions, dim=-1)), spans)

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
            views = {}
            for number in numbers:
                span = packed.spans[number]
                views[number] = self._view(number, packed.hidden[span.video_rows], span.index)
                if self._pruner.needs.last_token_attention:
                    views[number].attention = _video_attention(span, query, key)
            kept |= self._decide(stage, views)
        if kept:
            packed.keep(kept)

    def _view(self, number: int, hidden: torch.Tensor, index: torch.Tensor) -> VideoTokens:
        """A sequence's live video tokens as the pruner sees them."""
        sequence = self._sequences[number]
        return VideoTokens(
            grid=sequence.grid,
            plan=sequence.plan,
            hidden=hidden,
            index=index,
            seed=sequence.request.seed,
            is_traced=sequence.tracer is not None,
            state=self._states[number],
        )

    def _input(self, number: int, video: EncodedVideo) -> VideoTokens:
        """A sequence's video tokens before the first layer, with what the pruner needs beside them."""
        view = self._view(number, video.tokens, torch.arange(video.tokens.shape[0], device=video.tokens.device))
        if self._pruner.needs.encoder_attention:
            view.encoder_attention = video.attention
        if self._pruner.needs.prompt:
            view.prompt = self._family.embed_user_prompt(self._sequences[number].request.prompt)
        return view

    def _decide(self, stage: int, views: dict[int, VideoTokens]) -> dict[int, Kept]:
        """Ask the pruner about the videos of some sequences, by their number, and hold it to its plans."""
        self._prefill_ms += self._watch.lap()
        videos = list(views.values())
        decisions = self._pruner.prune_layer(stage, videos) if stage else self._pruner.prune_input(videos)
        for (number, view), decision in zip(views.items(), decisions, strict=True):
            self._accept(stage, self._sequences[number], view.index, decision)
            self._states[number] = decision.state
        self._prune_ms += self._watch.lap()
        return dict(zip(views, decisions, strict=True))

    def _accept(self, stage: int, sequence: Sequence, index: torch.Tensor, decision: Kept) -> None:
        """Take a decision on the live tokens `index` over into the sequence; RuntimeError if it breaks the plan."""
        if decision.plan is not None:
            try:
                sequence.revise(stage, decision.plan)
            except ValueError as error:
                raise RuntimeError(
                    f"pruner {self._pruner.name!r} revised its plan at stage {stage}: {error}"
                ) from error
        if decision.keep.shape[0] != sequence.plan.counts[stage]:
            raise RuntimeError(
                f"pruner {self._pruner.name!r} kept {decision.keep.shape[0]} tokens at stage {stage}, "
                f"its plan says {sequence.plan.counts[stage]}"
            )
        if decision.segment_starts is not None:
            sequence.segments = len(decision.segment_starts)
        if sequence.tracer is not None:
            sequence.tracer.note(sequence.plan.layers[stage], index, decision)

    def _attribute_times(self) -> None:
        """Divide the pass's time among its sequences: pruning by N, the rest by tokens over all layers."""
        self._prefill_ms += self._watch.lap()
        prune_ms = shares(self._prune_ms, [s.grid.tokens for s in self._sequences])
        prefill_ms = shares(self._prefill_ms, [sum(s.entering_tokens) for s in self._sequences])
        for sequence, prune, rest in zip(self._sequences, prune_ms, prefill_ms, strict=True):
            sequence.prune_ms += prune
            sequence.prefill_ms += rest


def _video_attention(span: Span, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The last prompt token's attention to a sequence's live video tokens, float32 [video]."""
    attention = last_token_attention(query[span.rows][-1], key[span.rows])
    return attention[span.before : span.before + span.video]
