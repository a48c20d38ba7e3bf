"""Options that were chosen for one model from its own outputs, and the file that carries them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pruning.config import OF_ALL, PRESETS, PruningConfig, option_names, written_out

OWN_FILE = "calibration.json"
"""The name of a model's own calibration, beside its weights."""


class CalibrationError(ValueError):
    """A calibration file that cannot be used; the message is one line that says why."""


class Calibration(BaseModel):
    """What a calibration file holds.

    `options` are options of PruningConfig by name. `evidence` says on what samples they were
    chosen and how each candidate scored; nothing reads it but people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    model: str = Field(min_length=1)
    model_hash: str = Field(min_length=1)
    method: Literal["hieravid"]
    options: dict[str, Any]
    evidence: dict[str, Any] = Field(default_factory=dict)

    @field_validator("options")
    @classmethod
    def _known_and_in_range(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in options:
            if name not in option_names():
                raise ValueError(f"{name} is none of {', '.join(option_names())}")
        config = PruningConfig.model_validate({"method": "hieravid", **options})
        return {name: getattr(config, name) for name in options}


def parse_calibration(text: bytes | str, source: str) -> Calibration:
    """The calibration in a file's content; CalibrationError, beginning with `source`, if it is none."""
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = " ".join(str(first["msg"]).split())
        raise CalibrationError(f"{source}: {f'{key}: ' if key else ''}{said}") from error


def read_calibration(path: str | Path) -> Calibration:
    """Read a local calibration file; CalibrationError if it is missing or is none."""
    return parse_calibration(_read_local(str(path)), str(path))


def apply_calibration(config: PruningConfig, calibration: Calibration | None) -> PruningConfig:
    """A config in which every option is written out, and neither preset nor calibration named.

    An option is the config's own where that sets it, else the calibration's, else that of the preset,
    else the field default; with neither preset nor calibration, the author preset's. Methods
    other than hieravid have no options: their configs come back as they are.
    """
    if config.method != "hieravid":
        return config
    preset = config.preset or ("author" if calibration is None else "default")
    chosen = {} if calibration is None else calibration.options
    known = {name: getattr(config, name) for name in OF_ALL} | {"preset": None, "calibration": None}
    defaults = {name: PruningConfig.model_fields[name].default for name in option_names()}
    return PruningConfig(**{**known, **defaults, **PRESETS[preset], **chosen, **written_out(config)})


def resolve_options(
    config: PruningConfig,
    own: Path | None,
    model: str,
    model_hash: Callable[[], str],
    read: Callable[[str], bytes] | None = None,
) -> PruningConfig:
    """Find, read and apply the calibration that a config asks for, on a model.

    `own` is the model's own calibration file, None if it has none; `model` and `model_hash` (only
    called if there is a file to compare with) name the model; `read` gets the bytes of a named file,
    from the local disk by default. Raises CalibrationError where the file cannot be read, is none or was
    made for another model.
    """
    source = config.calibration
    if source == "auto":
        source = str(own) if own is not None and config.preset is None else None
    if source is None or config.method != "hieravid":
        return apply_calibration(config, None)
    is_named = config.calibration != "auto"
    calibration = parse_calibration((read if read and is_named else _read_local)(source), source)
    found = model_hash()
    if calibration.model_hash != found:
        raise CalibrationError(
            f"{source}: made for the model {calibration.model} ({calibration.model_hash[:12]}), "
            f"this one is {model} ({found[:12]}); null leaves it out"
        )
    return apply_calibration(config, calibration)


def _read_local(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or 'cannot be read'}") from error
