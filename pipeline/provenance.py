"""Which code wrote a row."""

from __future__ import annotations

import hashlib
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("jobs", "pipeline", "pruning")


@cache
def code_version() -> str:
    """The package's version and a hash of its sources, as in 0.1.0+3f9a1c2e.

    The hash tells apart what no version does: an edited checkout, or one that `ray job submit`
    copied to a cluster without its history.
    """
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{_release()}+{digest.hexdigest()[:8]}"


def _release() -> str:
    project = _ROOT / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text())["project"]["version"])
    try:
        return metadata.version("hieravid")
    except metadata.PackageNotFoundError:
        return "0"
