"""The reference of every key of a job file, from the models that check it: `python -m pipeline.config_reference`."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.config import JobConfig
from pruning import PruningConfig

_HEAD = """# Job files

The files here are templates and demos; a job file may hold these keys. Each can be given on the command line as
`key.path=value`, over the file's; a preset and a calibration come before the file, a manifest row's columns after.
A key that is not here, or a value that is not allowed, is answered in one line before anything starts.

This page is generated from the models that check a job file (`make docs`).
"""


def reference() -> str:
    """The page, Markdown."""
    sections = [_HEAD, _table("", _plain(JobConfig))]
    for name, field in JobConfig.model_fields.items():
        section = PruningConfig if name == "pruning" else field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            sections.append(f"## {name}\n\n{_first_line(section)}\n\n" + _table(f"{name}.", section.model_fields, name))
    return "\n".join(sections)


def _plain(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {
        name: field
        for name, field in model.model_fields.items()
        if name != "pruning" and not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
    }


def _table(prefix: str, fields: dict[str, FieldInfo], section: str = "") -> str:
    lines = ["| key | default | allowed |", "|---|---|---|"]
    for name, field in fields.items():
        if section == "pruning" and name == "retention":
            continue  # given as budget.retention
        lines.append(f"| `{prefix}{name}` | {_default(field)} | {_escaped(field.description or '')} |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    return f"`{json.dumps(value, default=str)}`"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201
