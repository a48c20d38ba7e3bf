"""Strings at which an answer ends, found while it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class StopStrings:
    """Watches one answer's tokens; only so many of its last ones are decoded that a string may end in them."""

    def __init__(self, strings: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        """`decode` turns tokens into text and leaves white space as it is."""
        self._strings = tuple(strings)
        self._decode = decode
        # Characters in which any of them fits, beside up to three signs at either end for a character cut apart.
        self._enough = max(len(string) for string in strings) + 6
        self._first = 0  # token from which on text is looked through

    def are_met(self, token_ids: list[int]) -> bool:
        """Whether the text ends, or ended, one of the strings; to be asked after every token."""
        tail = token_ids[self._first :]
        text = self._decode(tail)
        if any(string in text for string in self._strings):
            return True
        # A token may hold no text, or part of a character: whether half of the tail is enough, only its text tells.
        if len(text) > 2 * self._enough:
            middle = len(tail) // 2
            if len(self._decode(tail[middle:])) >= self._enough:
                self._first += middle
        return False

    def cut(self, text: str) -> str:
        """The text before the first of the strings, all of it if it has none."""
        return text[: min((place for string in self._strings if (place := text.find(string)) >= 0), default=len(text))]
