"""Python and the packages, against the ranges that the project declares."""

from __future__ import annotations

import platform
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipeline.doctor.check import Finding

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def look_at_python() -> Finding:
    """The interpreter's version."""
    allowed, _ = _declared()
    found = f"Python {platform.python_version()}"
    if platform.python_version() in SpecifierSet(allowed, prereleases=True):
        return Finding("ok", found)
    return Finding("fail", f"{found}, and {allowed} is needed", "make the virtual environment with a newer Python")


def look_at_packages() -> Finding:
    """Every declared dependency: whether it is installed, in a version that is supported."""
    _, requirements = _declared()
    wrong = [problem for requirement in requirements if (problem := _problem(requirement))]
    if not wrong:
        return Finding("ok", f"{len(requirements)} packages in the versions that are supported")
    names = " ".join(f"'{requirement}'" for requirement in requirements if _problem(requirement))
    return Finding("fail", "; ".join(wrong), f"python -m pip install -c constraints.txt {names}")


def _problem(requirement: Requirement) -> str | None:
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    # A nightly build or one with a local part such as +cpu counts as its version.
    if requirement.specifier.contains(found, prereleases=True):
        return None
    return f"{requirement.name} {found}, and {requirement.specifier} is needed"


def _declared() -> tuple[str, list[Requirement]]:
    """The range of Python and the requirements that hold on this machine: the checkout's own, else the installation's.

    An editable installation remembers what the project declared when it was made.
    """
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
        python, texts = project["requires-python"], project["dependencies"]
    else:
        installed = metadata.distribution("hieravid")
        python, texts = installed.metadata["Requires-Python"], installed.requires or []
    requirements = [Requirement(text) for text in texts]
    return python, [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
