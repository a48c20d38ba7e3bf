"""What is evaluated: a pruning method with its options, under the name that tables give it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config import JobConfig
from pipeline.config_mistakes import mistakes
from pipeline.errors import UserError
from pipeline.tiny.oracle import Oracle
from pruning import Pruner, PruningConfig, make_pruner, method_names

UNPRUNED = "none"
_BETWEEN_OPTIONS = re.compile(r",(?![^\[]*\])")  # not the commas inside [a, b]


@dataclass(frozen=True)
class Variant:
    """A method with options that are written out; `clips` asks for only that many first clips, None for all."""

    label: str
    method: str
    options: tuple[tuple[str, Any], ...] = ()
    clips: int | None = None

    def config(self) -> PruningConfig | None:
        """The pruning section that a job would hold; None for the oracle, which no job can ask for.

        Raises UserError for an unknown method or option, or a value outside its range.
        """
        if self.method == Oracle.name:
            return None
        section = {"method": self.method, **dict(self.options)}
        try:
            return JobConfig.model_validate({"task": "qa", "manifest": "-", "output": "-", "pruning": section}).pruning
        except ValidationError as error:
            raise UserError("\n".join(f"method {self.label}: {line}" for line in mistakes(error))) from error


def pruner_of(config: PruningConfig | None) -> Pruner:
    """The method that a variant's config describes."""
    return Oracle() if config is None else make_pruner(config)


def known_methods() -> tuple[str, ...]:
    """Every method that can be evaluated."""
    return (*method_names(), Oracle.name)


def parse_variant(text: str) -> Variant:
    """A variant from `method`, `method:option=value,option=value`, either with `@clips` behind it.

    Values are YAML (`levels=[segment,frame]`). Raises UserError for what cannot be read or used.
    """
    label, _, limit = text.partition("@")
    if limit and (not limit.isdecimal() or int(limit) < 1):
        raise UserError(f"method {text}: after @ stands a number of clips, not {limit!r}")
    method, _, rest = label.partition(":")
    if method not in known_methods():
        raise UserError(f"method {text}: unknown method {method!r}, known: {', '.join(known_methods())}")
    options: list[tuple[str, Any]] = []
    for part in _BETWEEN_OPTIONS.split(rest) if rest else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"method {text}: {part!r} is not of the form option=value")
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"method {text}: {value!r} is no YAML value") from error
        options.append((name.strip(), tuple(read) if isinstance(read, list) else read))
    if options and method == Oracle.name:
        raise UserError(f"method {text}: the oracle has no options")
    variant = Variant(label, method, tuple(options), int(limit) if limit else None)
    variant.config()
    return variant
