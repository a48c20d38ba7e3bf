"""Options: lettered in a prompt, and read back from an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

PROMPT_FORMAT = 1
"""Raised with every change to the text that `with_options` makes: it is part of the fingerprint."""
OPTION_REQUEST = "Answer with the option's letter from the given choices directly."
"""The wording of the public video benchmarks, which the large models and the built-in one were trained with."""
MAX_OPTIONS = len(ascii_uppercase)

_BARE_LETTER = re.compile(r"\(?([A-Za-z])(?:[).:]*|[).:]+\s.*)\Z", re.DOTALL)
# Upper case only: "the answer is a dog" names no option.
_NAMED_LETTER = re.compile(r"\b(?i:answer|option|choice)\b(?i:\s+is)?\s*:?\s*\(?([A-Z])\b(?!['’])")


def with_options(question: str, options: Sequence[str]) -> str:
    """The question, a line `A. text` for each option, one that asks for the letter; without options the question."""
    if not options:
        return question
    lines = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines, OPTION_REQUEST])


def parse_option(answer: str | None, options: Sequence[str] | None) -> str | None:
    """The text of the option that an answer chose, or None where it chose none or several.

    Read in this order: a leading letter ("B", "(b)", "B. red"), a whole option text, a named
    letter ("the answer is B"), the only option whose text occurs in the answer.
    """
    if not answer or not options:
        return None
    text = answer.strip()
    leading = _BARE_LETTER.match(text)
    if leading and (chosen := _by_letter(leading[1], options)) is not None:
        return chosen
    plain = _plain(text)
    for option in options:
        if _plain(option) == plain:
            return option
    named = set(_NAMED_LETTER.findall(text))
    if len(named) == 1 and (chosen := _by_letter(named.pop(), options)) is not None:
        return chosen
    mentioned = [option for option in options if _mentions(plain, _plain(option))]
    return mentioned[0] if len(mentioned) == 1 else None


def _by_letter(letter: str, options: Sequence[str]) -> str | None:
    place = ascii_uppercase.index(letter.upper())
    return options[place] if place < len(options) else None


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .,:;!?\"'()").casefold()


def _mentions(text: str, option: str) -> bool:
    return bool(option) and re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text) is not None
