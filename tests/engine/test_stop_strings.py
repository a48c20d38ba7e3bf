"""An answer ends before the first stop string, however its tokens cut it up."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import Request
from pipeline.engine.stop_strings import StopStrings
from pruning import PruningConfig
from tests.engine.checkpoints import build_tokenizer
from tests.engine.videos import make_video

HALF = PruningConfig(method="hieravid", retention=0.5)
TOKENIZER = build_tokenizer()  # a token a byte
SPECIAL = TOKENIZER.convert_tokens_to_ids("<|endoftext|>")


def decode(token_ids):
    return TOKENIZER.decode(token_ids, skip_special_tokens=True)


def ids_of(text):
    return TOKENIZER(text, add_special_tokens=False).input_ids


def stopped_after(strings, token_ids):
    """Tokens until the strings are met, None if they never are, and the text before."""
    stop = StopStrings(strings, decode)
    for count in range(1, len(token_ids) + 1):
        if stop.are_met(token_ids[:count]):
            return count, stop.cut(decode(token_ids[:count]))
    return None, stop.cut(decode(token_ids))


@pytest.mark.parametrize(
    ("text", "strings", "before"),
    [
        ("red. blue", [". "], "red"),
        ("red\n", ["\n"], "red"),
        ("one two three", ["three", "two"], "one "),
        ("one two three", ["o three", "two"], "one "),
        ("ab", ["b", "ab"], ""),
        ("a caf\u00e9 here", ["\u00e9"], "a caf"),
        ("go \U0001f600 on", ["\U0001f600 o"], "go "),
        ("aaab", ["aab"], "a"),
        ("x" * 500 + "END" + "y", ["END"], "x" * 500),
        ("\u4e2d\u6587" * 60 + "\u6587\u6587!", ["\u6587\u6587!"], "\u4e2d\u6587" * 60),
    ],
)
def test_text_is_cut_before_the_first_string(text, strings, before):
    count, told = stopped_after(strings, ids_of(text))
    assert told == before
    met = min(len((text[: text.index(s)] + s).encode()) for s in strings if s in text)
    assert count == met  # as soon as it is complete


def test_what_has_no_stop_string_goes_on():
    assert stopped_after(["END", "\n\n"], ids_of("no end\nhere EN")) == (None, "no end\nhere EN")


def test_special_tokens_inside_hide_nothing():
    tokens = [*ids_of("x" * 40 + "E"), *[SPECIAL] * 30, *ids_of("N"), SPECIAL, *ids_of("D")]
    assert stopped_after(["END"], tokens) == (len(tokens), "x" * 40)


@given(
    st.text("ab\u00e9\u4e2d\U0001f600 \n", max_size=80),
    st.lists(st.text("ab\u00e9\u4e2d\U0001f600 \n", min_size=1, max_size=5), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=200)
def test_looking_at_the_end_finds_what_looking_at_all_finds(text, strings):
    tokens = ids_of(text)
    expected = next((n for n in range(1, len(tokens) + 1) if any(s in decode(tokens[:n]) for s in strings)), None)
    count, told = stopped_after(strings, tokens)
    assert count == expected
    assert not any(s in told for s in strings)


def test_only_the_end_of_a_long_answer_is_decoded():
    longest = 0

    def watched(token_ids):
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode(token_ids)

    stop = StopStrings(["never"], watched)
    tokens = ids_of("some words " * 200)
    assert not any(stop.are_met(tokens[:n]) for n in range(1, len(tokens) + 1))
    assert longest < 40


def ask(**options):
    return Request(make_video(4), "what happens", **{"max_new_tokens": 24, **options})


def test_an_answer_of_the_engine_ends_there(llm):
    [free] = llm.answer([ask()], HALF)
    raw = llm._family.decode_text(free.token_ids)
    string = next(raw[n : n + 2] for n in range(3, len(raw) - 1) if "\ufffd" not in raw[n : n + 2])
    stopped, other = llm.answer([ask(stop=(string,)), ask()], HALF)
    assert stopped.text == raw[: raw.index(string)].strip()
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert string in llm._family.decode_text(stopped.token_ids)
    assert string not in llm._family.decode_text(stopped.token_ids[:-1])
    assert (other.text, other.finish_reason) == (free.text, "length")


def test_white_space_at_the_end_is_seen(llm):
    family = llm._family
    tokens = family._chat.tokenizer("red \n", add_special_tokens=False).input_ids
    stop = StopStrings(["\n"], family.decode_text)
    assert [stop.are_met(tokens[:n]) for n in range(1, 6)] == [False] * 4 + [True]


def test_a_forced_answer_does_not_stop(llm):
    tokens = tuple(llm._family._chat.tokenizer("a\nb", add_special_tokens=False).input_ids)
    [forced] = llm.answer([ask(forced_token_ids=tokens, stop=["\n"])], HALF)
    assert (forced.text, forced.finish_reason) == ("a\nb", "length")


@pytest.mark.parametrize("stop", ["end", ("",), (3,), None])
def test_senseless_stops_are_refused(llm, stop):
    with pytest.raises(ValueError, match=r"^request 0: stop must be a list of strings"):
        llm.answer([dataclasses.replace(ask(), stop=stop)], HALF)
