"""Methods as the command line names them."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.evaluate.variants import Variant, parse_variant, pruner_of
from pipeline.tiny.oracle import Oracle


def test_a_name_alone() -> None:
    assert parse_variant("uniform") == Variant("uniform", "uniform")


def test_options_and_a_number_of_clips() -> None:
    variant = parse_variant("hieravid:tau=0.7,levels=[segment,frame],segments=4@200")
    assert variant.label == "hieravid:tau=0.7,levels=[segment,frame],segments=4"
    assert variant.clips == 200
    config = variant.config()
    assert config is not None
    assert (config.tau, config.levels, config.segments) == (0.7, ("segment", "frame"), 4)


def test_the_oracle_has_no_config() -> None:
    assert parse_variant("oracle").config() is None
    assert isinstance(pruner_of(None), Oracle)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("unifrom", "unknown method 'unifrom', known: .*uniform"),
        ("hieravid:taw=0.5", "pruning.taw"),
        ("hieravid:tau=7", "pruning.tau = 7"),
        ("hieravid:tau", "'tau' is not of the form option=value"),
        ("hieravid@", None),
        ("uniform@many", "a number of clips, not 'many'"),
        ("uniform@0", "a number of clips, not '0'"),
        ("uniform:tau=0.5", "an option of hieravid"),
        ("oracle:tau=0.5", "the oracle has no options"),
        ("hieravid:tau=[0.5", "no YAML value"),
    ],
)
def test_a_mistake_is_told_in_a_line_that_names_the_method(text: str, told: str | None) -> None:
    if told is None:
        assert parse_variant(text).clips is None
        return
    with pytest.raises(UserError, match=told) as caught:
        parse_variant(text)
    assert str(caught.value).startswith(f"method {text}")
    assert "\n" not in str(caught.value)
