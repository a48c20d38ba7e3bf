"""What travels to the cluster with a submitted job: the working directory, without what must or need not leave here."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from pipeline.errors import UserError

_CODE = Path(__file__).resolve().parent.parent
_PACKAGES = ("jobs", "pipeline", "pruning")
LEFT_OUT = (
    ".*",
    "__pycache__",
    "*.egg-info",
    "venv",
    "node_modules",
    "out",
    "*.pem",
    "*.key",
    "id_rsa*",
    "id_ed25519*",
)
"""Names of files and folders that stay: environments, caches and results, keys, and all that begins with a dot."""
LARGE = 32 * 2**20
"""Bytes of a file that stays: videos and weights have a place that every node sees."""
_MOST_FILES = 50_000
_MOST_NAMED = 5


@dataclass(frozen=True)
class Files:
    """The files of a working directory that go along, by their path in it, and the large ones that stay."""

    folder: Path
    sizes: dict[str, int]
    large: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes, unpacked."""
        return sum(self.sizes.values())


def find_files(folder: Path, exclude: Sequence[str], limit: int) -> Files:
    """What of `folder` goes along: not what LEFT_OUT or `exclude` name, by name or by path, and no LARGE file.

    Raises UserError where there is no such folder, and, naming what takes most of it, beyond `limit` bytes.
    """
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder}: there is no such folder")
    found = Files(folder, {}, {})
    for path in _walk(folder, "", (*LEFT_OUT, *exclude)):
        size = (folder / path).stat().st_size
        (found.large if size > LARGE else found.sizes)[path] = size
        if len(found.sizes) > _MOST_FILES:
            raise UserError(
                f"{folder} has more than {_MOST_FILES:,} files; most are in {_most(found.sizes, by_size=False)}"
            )
    if not any(path.startswith("jobs/") for path in found.sizes) and folder != _CODE:
        found.sizes.update({path: (_CODE / path).stat().st_size for path in _our_code()})
    if found.size > limit:
        raise UserError(
            f"{folder} has {_size(found.size)} to send and Ray takes {_size(limit)}: leave something out with "
            f"--exclude; most is in {_most(found.sizes)}"
        )
    return found


def copy_files(files: Files, target: Path) -> None:
    """Copy them to the folder `target`, our own code from where it runs if the working directory has none."""
    for path in files.sizes:
        source = files.folder / path
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source if source.is_file() else _CODE / path, target / path)


def _walk(folder: Path, below: str, left_out: Sequence[str]) -> Iterator[str]:
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{below}{entry.name}"
            if any(fnmatch(entry.name, name) or fnmatch(path, name.rstrip("/")) for name in left_out):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder, f"{path}/", left_out)
            elif entry.is_file():
                yield path


def _our_code() -> Iterator[str]:
    for package in _PACKAGES:
        yield from _walk(_CODE, f"{package}/", LEFT_OUT)
    if (_CODE / "pyproject.toml").is_file():
        yield "pyproject.toml"  # has the version that results carry


def describe_large(files: Files) -> str:
    """Which large files stay, in words; nothing where there is none."""
    if not files.large:
        return ""
    return f"left out as larger than {_size(LARGE)}: {_named(Counter(files.large))}"


def _most(sizes: dict[str, int], *, by_size: bool = True) -> str:
    """The folders and files right below the top that hold most."""
    total: Counter[str] = Counter()
    for path, size in sizes.items():
        total[path.partition("/")[0]] += size if by_size else 1
    return _named(total) if by_size else ", ".join(f"{name} ({count:,})" for name, count in total.most_common(3))


def _named(sizes: Counter[str]) -> str:
    shown = ", ".join(f"{name} ({_size(size)})" for name, size in sizes.most_common(_MOST_NAMED))
    return f"{shown}, …" if len(sizes) > _MOST_NAMED else shown


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
