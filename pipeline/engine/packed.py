"""Several sequences in one tensor, without padding, while video tokens leave from the middle of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pipeline.engine.decoder import Rope
from pruning import Kept


@dataclass
class Span:
    """One sequence's live tokens: text before the video, video, text after, with its first row in the pack.

    `index` is int64 [video]: each live video token's place among the original N.
    """

    start: int
    before: int
    video: int
    after: int
    index: torch.Tensor

    @property
    def length(self) -> int:
        """Live tokens, text included."""
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


@dataclass
class Packed:
    """`hidden` [S, d] and its rotary tables; the spans follow each other without gaps."""

    hidden: torch.Tensor
    rope: Rope
    spans: list[Span]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        return [span.length for span in self.spans]

    def last_rows(self) -> torch.Tensor:
        """Row of each sequence's last token, int64 [B]."""
        return torch.tensor([span.rows.stop - 1 for span in self.spans], device=self.hidden.device)

    def keep(self, kept: Mapping[int, Kept]) -> None:
        """Let only the decided video tokens of the decided sequences live; the others stay as they are."""
        rows: list[torch.Tensor] = []
        start = 0
        for number, span in enumerate(self.spans):
            own = torch.arange(span.rows.start, span.rows.stop, device=self.hidden.device)
            if number in kept:
                survivors = kept[number].keep
                first, end = span.before, span.before + span.video
                own = torch.cat((own[:first], own[first:end][survivors], own[end:]))
                span.index = span.index[survivors]
                span.video = survivors.shape[0]
            rows.append(own)
            span.start = start
            start += span.length
        selected = torch.cat(rows)
        self.hidden = self.hidden[selected]
        self.rope = self.rope.select(selected)
        for number, decision in kept.items():
            if decision.values is not None:
                self.hidden[self.spans[number].video_rows] = decision.values
