"""A prompt of fixed token ids, where no tokenizer is at hand and no answer may end early."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FixedChat:
    """Stands in for a checkpoint's `Chat`: every prompt becomes the same ids, and no token ends an answer.

    The lengths are those of a short question in the published templates. The ids start behind the few
    that small vocabularies reserve; larger ones have theirs at the end.
    """

    before: tuple[int, ...] = tuple(range(5, 19))
    after: tuple[int, ...] = tuple(range(19, 45))
    end_ids: frozenset[int] = frozenset()

    def tokenize(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the video."""
        return list(self.before), list(self.after)

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids that stand for the prompt's own words."""
        return list(self.after)

    def decode(self, token_ids: list[int]) -> str:
        """The ids themselves: there are no words for them."""
        return " ".join(map(str, token_ids))
