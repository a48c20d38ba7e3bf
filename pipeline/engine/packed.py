"""Several sequences in one tensor, without padding, while video tokens leave from the middle of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.engine.decisions import Decision
from pipeline.engine.decoder import Decoder, Rope
from pipeline.engine.encoded import EncodedVideo
from pipeline.engine.families import Family
from pipeline.engine.prefix import Prefix
from pipeline.engine.sequence import Sequence
from pipeline.engine.upload import upload
from pruning import Kept

# Embeddings [n, d] of a stretch of a sequence, and its positions, [n] or [3, n].
Stretch = tuple[torch.Tensor, torch.Tensor]


def head(family: Family, sequence: Sequence, video: EncodedVideo, kept: Kept) -> Stretch:
    """A sequence up to the end of its video, of which only what was kept is there."""
    before, _ = family.embed_prompt(sequence.prompt)
    positions = family.positions(sequence.prompt, sequence.grid)
    first = before.shape[0]
    tokens = video.tokens[kept.keep] if kept.values is None else kept.values
    places = positions[..., first : first + sequence.grid.tokens][..., kept.keep]
    return torch.cat((before, tokens)), torch.cat((positions[..., :first], places), dim=-1)


def tail(family: Family, sequence: Sequence) -> Stretch:
    """What follows the video."""
    _, after = family.embed_prompt(sequence.prompt)
    return after, family.positions(sequence.prompt, sequence.grid)[..., -after.shape[0] :]


@dataclass
class Span:
    """One sequence's live tokens in a pack: text before the video, video, text after, from row `start` on.

    `index` is int64 [video]: each live video token's place among the original N; `state` what the
    pruner remembers of it. While the sequence shares a `prefix`, only its text after the video is in
    the pack, and `before` and `video` are 0.
    """

    sequence: Sequence
    before: int
    video: int
    after: int
    index: torch.Tensor
    state: Any = None
    prefix: Prefix | None = None
    start: int = 0

    @classmethod
    def around(cls, sequence: Sequence, kept: Kept, has_tail: bool = True) -> Span:
        """A sequence with what was kept of its video at the input, up to the end of the video or to its own."""
        before = len(sequence.prompt.before)
        after = sequence.text_tokens - before if has_tail else 0
        return cls(sequence, before, kept.keep.shape[0], after, kept.keep, kept.state)

    @classmethod
    def behind(cls, sequence: Sequence, prefix: Prefix) -> Span:
        """What follows a shared prefix."""
        after = sequence.text_tokens - prefix.before
        return cls(sequence, 0, 0, after, torch.empty(0, dtype=torch.int64), prefix=prefix)

    @property
    def length(self) -> int:
        """Its rows in the pack."""
        return self.before + self.video + self.after

    @property
    def rows(self) -> slice:
        """The sequence's rows."""
        return slice(self.start, self.start + self.length)

    @property
    def video_rows(self) -> slice:
        """The rows of its live video tokens."""
        first = self.start + self.before
        return slice(first, first + self.video)


class Packed:
    """`hidden` [S, d] and its rotary tables; the spans follow each other without gaps."""

    def __init__(self, hidden: torch.Tensor, rope: Rope, spans: list[Span]) -> None:
        """The spans' rows are numbered here."""
        self.hidden = hidden
        self.rope = rope
        self.spans = spans
        self._number_rows()

    @classmethod
    def lay(cls, decoder: Decoder, stretches: list[Stretch], spans: list[Span]) -> Packed:
        """The stretches that make up the spans, end to end."""
        hidden, positions = zip(*stretches, strict=True)
        return cls(torch.cat(hidden), decoder.rope(torch.cat(positions, dim=-1)), spans)

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        return [span.length for span in self.spans]

    def last_rows(self, counts: Iterable[int]) -> torch.Tensor:
        """The rows of the last `counts[b]` tokens of each sequence, int64 [sum of counts]."""
        rows = [torch.arange(s.rows.stop - n, s.rows.stop) for s, n in zip(self.spans, counts, strict=True)]
        return upload(torch.cat(rows), self.hidden.device)

    def whole(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Keys and values of whole sequences and their lengths: those of shared prefixes go before the rows' own."""
        if all(span.prefix is None for span in self.spans):
            return key, value, self.lengths
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        lengths = self.lengths
        for number, span in enumerate(self.spans):
            if span.prefix is not None:
                keys.append(span.prefix.keys[layer])
                values.append(span.prefix.values[layer])
                lengths[number] += keys[-1].shape[0]
            keys.append(key[span.rows])
            values.append(value[span.rows])
        return torch.cat(keys), torch.cat(values), lengths

    def part(self, layer: int) -> None:
        """Sequences whose prefix ends in `layer` go on by themselves, each with a copy of its hidden states."""
        ends = {n: s.prefix for n, s in enumerate(self.spans) if s.prefix is not None and s.prefix.ends_in(layer)}
        if not ends:
            return
        hidden: list[torch.Tensor] = []
        ropes: list[Rope] = []
        for number, span in enumerate(self.spans):
            own = span.rows
            if number in ends and (end := ends[number].end):
                hidden.append(end.hidden)
                ropes.append(end.rope)
                span.before, span.video = ends[number].before, end.index.shape[0]
                span.index, span.state, span.prefix = end.index, end.state, None
            hidden.append(self.hidden[own])
            ropes.append(self.rope.select(own))
        self.hidden = torch.cat(hidden)
        self.rope = Rope(*(torch.cat(tables) for tables in zip(*ropes, strict=True)))
        self._number_rows()

    def keep(self, decisions: Mapping[int, Decision]) -> None:
        """Let only the decided video tokens of the decided sequences live; the others stay as they are."""
        rows: list[torch.Tensor] = []
        for number, span in enumerate(self.spans):
            own = torch.arange(span.rows.start, span.rows.stop, device=self.hidden.device)
            if number in decisions:
                _, index, kept = decisions[number]
                first, end = span.before, span.before + span.video
                own = torch.cat((own[:first], own[first:end][kept.keep], own[end:]))
                span.video, span.index, span.state = kept.keep.shape[0], index[kept.keep], kept.state
            rows.append(own)
        selected = torch.cat(rows)
        self.hidden = self.hidden[selected]
        self.rope = self.rope.select(selected)
        self._number_rows()
        for number, decision in decisions.items():
            if decision.kept.values is not None:
                self.hidden[self.spans[number].video_rows] = decision.kept.values

    def _number_rows(self) -> None:
        start = 0
        for span in self.spans:
            span.start = start
            start += span.length
