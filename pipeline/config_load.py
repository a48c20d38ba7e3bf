"""From a job file and `key.path=value` overrides to a validated `JobConfig`, or to lines that say what is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from pydantic import ValidationError

from pipeline.config import JobConfig, Task
from pipeline.config_mistakes import mistakes
from pipeline.errors import UserError, one_line
from pipeline.storage import read_bytes
from pipeline.uris import without_secrets


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once and 2026-11-22 is a text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse what YAML lets pass: the second of two equal keys would silently win."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key_node.value!r} stands twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path | None, overrides: Sequence[str] = (), task: Task | None = None) -> JobConfig:
    """Read the job file at `path` (local or s3://; None: defaults only), apply `overrides`, validate.

    `task` is what the started job does; a file of another task is refused, one without a task
    takes it. A resolved config.yaml of an earlier run is a job file too: its `fingerprint` is not
    read. Raises UserError with one line for each of the first mistakes.
    """
    if path is not None and without_secrets(str(path)) != str(path):
        raise UserError("--config: credentials and signatures do not belong in a uri: use the environment")
    values = _read(str(path)) if path is not None else {}
    values.pop("fingerprint", None)
    # `video:` with nothing below it is an empty section, as it reads.
    values = {key: value for key, value in values.items() if value is not None or key not in JobConfig.model_fields}
    for override in overrides:
        _apply(values, override)
    if task is not None and values.setdefault("task", task) != task and values["task"] in ("caption", "qa"):
        raise UserError(
            f"task = {values['task']!r}: this is the {task} job; start that one with python -m jobs.{values['task']}"
        )
    if isinstance(values.get("pruning"), dict) and "retention" in values["pruning"]:
        raise UserError(
            f"pruning.retention = {values['pruning']['retention']!r}: the amount is set as budget.retention"
        )
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(mistakes(error))) from None


def dump_config(config: JobConfig, fingerprint: str) -> str:
    """The resolved config as YAML, its fingerprint first; `load_config` reads it back."""
    return yaml.safe_dump(
        {"fingerprint": fingerprint, **config.model_dump(mode="json")}, sort_keys=False, allow_unicode=True
    )


def _read(path: str) -> dict[str, Any]:
    try:
        values = yaml.load(read_bytes(path).decode("utf-8-sig"), _Loader)  # noqa: S506  # _Loader is a SafeLoader
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        # What YAML takes for the name of an alias or a tag may be a password that starts with * or !.
        hint = r"\1; put a text that starts with *, & or ! in quotes"
        problem = re.sub(r"(alias|anchor|tag) '.*'", hint, str(error.problem))
        raise UserError(f"{path}{place}: {problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not YAML: {one_line(str(error), 120)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: a job file is a mapping of keys such as manifest: and output:")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in `values`; sections on the way are made."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"{override!r}: an override is written key.path=value, as in budget.retention=0.3")
    section = values
    for depth, key in enumerate(keys[:-1], 1):
        inner = section.get(key) or {}
        if not isinstance(inner, dict):
            raise UserError(f"{path}: {'.'.join(keys[:depth])} is a value, not a section")
        section[key] = inner
        section = inner
    section[keys[-1]] = _scalar(text)


def _scalar(text: str) -> Any:
    """An override's value: what YAML makes of it as a scalar or list, else the text itself.

    A prompt may hold a colon or a hash sign, which YAML would take for a mapping or a comment.
    """
    if text[:1] not in ("'", '"', "[") and re.search(r":\s|\s#|[{}]", text):
        return text
    try:
        value = yaml.load(text, _Loader)  # noqa: S506  # _Loader is a SafeLoader
    except (yaml.YAMLError, ValueError):
        return text
    return text if isinstance(value, dict) else value
