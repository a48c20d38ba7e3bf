import pytest

from pipeline.prompts import OPTION_REQUEST, parse_option, with_options

COLOURS = ["red", "blue", "dark green"]


def test_options_are_lettered_below_the_question():
    lines = with_options("What colour?", COLOURS).splitlines()
    assert lines == ["What colour?", "A. red", "B. blue", "C. dark green", OPTION_REQUEST]


def test_a_question_without_options_stays_as_it_is():
    assert with_options("What colour?", []) == "What colour?"


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "blue"),
        ("b", "blue"),
        (" B.\n", "blue"),
        ("(B)", "blue"),
        ("B) blue", "blue"),
        ("B. red", "blue"),
        ("blue", "blue"),
        ("Blue.", "blue"),
        ("dark  green", "dark green"),
        ("The answer is C.", "dark green"),
        ("Answer: (A)", "red"),
        ("Option B", "blue"),
        ("It is blue, I think", "blue"),
        ("A red circle", "red"),
        ("E", None),
        ("red or blue", None),
        ("bluebell", None),
        ("the answer is a dog", None),
        ("", None),
        (None, None),
        ("purple", None),
    ],
)
def test_the_chosen_option_is_read_back(answer, chosen):
    assert parse_option(answer, COLOURS) == chosen


def test_a_number_among_numbers_is_an_option_text():
    assert parse_option("2", ["1", "2", "3"]) == "2"


def test_a_letter_means_the_letter_even_among_letters():
    assert parse_option("A", ["B", "A"]) == "B"


def test_without_options_there_is_nothing_to_choose():
    assert parse_option("A", None) is None
    assert parse_option("A", []) is None
