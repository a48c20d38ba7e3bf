"""Lengths of time as people write them: `90m`, `1h30m`, or a number of seconds."""

from __future__ import annotations

import re
from typing import Any

_UNITS_S = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_WRITTEN = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+", re.IGNORECASE)
_PART = re.compile(r"(\d+(?:\.\d+)?)([dhms])", re.IGNORECASE)


def seconds(value: Any) -> Any:
    """`1h30m` as a number of seconds; anything else as it is, for whoever checks numbers. ValueError for odd texts."""
    if not isinstance(value, str):
        return value
    text = re.sub(r"\s", "", value)
    if not _WRITTEN.fullmatch(text):
        raise ValueError(f"{value!r} is no length of time")
    return sum(float(number) * _UNITS_S[unit.lower()] for number, unit in _PART.findall(text))
