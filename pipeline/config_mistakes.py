"""What is wrong with a job file, in lines that a user can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config import JobConfig
from pipeline.errors import one_line
from pipeline.uris import without_secrets

_MOST_SHOWN = 5  # the rest mostly follows from them
_CONFIDENTIAL = re.compile(r"secret|passw|credential|token$|key$|auth", re.IGNORECASE)


def mistakes(error: ValidationError) -> list[str]:
    """One line for each mistaken key, in the order of the tree."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        path, field = _locate(item["loc"])
        if item["type"] == "extra_forbidden":
            path = ".".join(map(str, item["loc"]))
            line = _unknown_key(path, item["input"])
        elif item["type"] == "missing":
            line = f"{path} is missing: {_allowed(path, field, item)}"
        else:
            line = f"{path} = {_shown(path, item['input'])} is not allowed: {_allowed(path, field, item)}"
        lines.setdefault(path, line)  # a union reports one error for each of its members
    shown = list(lines.values())[:_MOST_SHOWN]
    more = len(lines) - len(shown)
    return [*shown, f"… and {more} more"] if more else shown


def _locate(loc: tuple[int | str, ...]) -> tuple[str, FieldInfo | None]:
    """The key path of an error and its field; pydantic's loc goes on into the members of unions."""
    model: type[BaseModel] | None = JobConfig
    keys: list[str] = []
    field = None
    for step in loc:
        if model is None or step not in model.model_fields:
            break
        keys.append(str(step))
        field = model.model_fields[str(step)]
        model = _section(field)
    return ".".join(keys), field


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _allowed(path: str, field: FieldInfo | None, item: Mapping[str, Any]) -> str:
    """What would be allowed. Our own descriptions say it whole; elsewhere pydantic's words name the bound."""
    said = re.sub(r"^(Value error|Assertion failed), ", "", str(item["msg"]))
    described = field.description if field else None
    if not described:
        return said
    if path.startswith("pruning.") or item["type"] == "value_error":
        return f"{said} ({described})"
    return described


def _shown(path: str, value: Any) -> str:
    if _CONFIDENTIAL.search(path):
        return "***"
    if isinstance(value, dict | list):
        return "a section" if isinstance(value, dict) else "a list"
    return one_line(repr(without_secrets(value) if isinstance(value, str) else value), 80)


def _unknown_key(path: str, value: Any) -> str:
    section = path.rpartition(".")[0]
    known = list(_known_keys(JobConfig))
    siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == section]
    nearest = _nearest(path, known)
    hint = f"; did you mean {nearest}?" if nearest else ""
    place = f" in {section}" if section else ""
    return f"{path} = {_shown(path, value)}: there is no such key{hint} (known{place}: {', '.join(siblings)})"


def _nearest(path: str, known: Sequence[str]) -> str | None:
    """The known key that was most likely meant: alike as a whole, or a known name in the wrong section."""
    section, _, name = path.rpartition(".")
    same_section = {key.rpartition(".")[2]: key for key in known if key.rpartition(".")[0] == section}
    anywhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    if name in anywhere:
        return anywhere[name]
    for names, cutoff in ((same_section, 0.6), (anywhere, 0.7)):
        if found := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return names[found[0]]
    whole = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
    return whole[0] if whole else None


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if prefix == "pruning." and name == "retention":
            continue  # budget.retention is its only home
        yield prefix + name
        section = _section(field)
        if section is not None:
            yield from _known_keys(section, f"{prefix}{name}.")
