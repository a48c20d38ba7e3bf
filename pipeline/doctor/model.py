"""A model's files: whether they are all there and readable, and whether their content is what it should be."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from pipeline.doctor.check import Finding
from pipeline.errors import UserError, one_line
from pipeline.model_fetch import cache_folder, local_model, model_version

_HASHED_BYTES = 4 * 2**30  # of a larger model the content is not read here: that takes longer than one waits
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"


def look_at_model(source: str) -> Finding:
    """Whether `model.source` can be had and is whole. Raises UserError or ClusterError.

    A remote model is listed, and its files are looked at where this machine has them already.
    """
    version = model_version(source)
    if version is None:
        return _look_at_folder(local_folder(source), source)
    [record, *_] = [*cache_folder().glob(f"*/{glob.escape(version)}/fetched.json"), None]
    if record is None:
        return Finding("ok", f"{source} is there; it is fetched when a job starts")
    known = json.loads(record.read_text(encoding="utf-8"))
    folder = record.parent / known["name"]
    if damaged := _damaged(folder, known["files"]):
        return Finding("fail", f"{folder}: {damaged} is not what was fetched", f"delete {record.parent}")
    return _look_at_folder(folder, source)


def local_folder(source: str, version: str | None = None) -> Path:
    """The folder of a model that is on this machine, a built-in one's too."""
    from pipeline.engine.checkpoint import Checkpoint  # late: torch

    return Checkpoint.open(local_model(source, version)).folder


def _look_at_folder(folder: Path, source: str) -> Finding:
    from pipeline.engine.checkpoint import Checkpoint
    from pipeline.engine.families import family_of

    checkpoint = Checkpoint.open(folder)
    family = family_of(checkpoint)
    shards = check_files(folder)
    size = sum(path.stat().st_size for path in shards)
    content = f"sha256 {checkpoint.content_hash()[:12]}" if size <= _HASHED_BYTES else "too large to hash here"
    found = f"{source}: {family.architecture}, {len(shards)} weight file(s), {size / 2**30:.2f} GiB, {content}"
    return Finding("ok", found)


def check_files(folder: Path) -> list[Path]:
    """The weight files of a model's folder. Raises UserError unless they are whole, with a readable tokenizer.

    Reads headers and the index, not the weights. Files of pickled weights are not looked at, and never loaded.
    """
    shards = _shards(folder)
    for path, wanted in shards.items():
        try:
            with safe_open(path, framework="np") as weights:
                missing = wanted - set(weights.keys())
        except FileNotFoundError as error:
            raise UserError(f"model.source: {path} is missing: {_INDEX} names it") from error
        except (SafetensorError, OSError) as error:
            raise UserError(f"model.source: {path} is damaged or cut short ({one_line(str(error), 120)})") from error
        if missing:
            raise UserError(f"model.source: {path} has no weight {min(missing)}, which {_INDEX} places there")
    _check_tokenizer(folder)
    return list(shards)


def _shards(folder: Path) -> dict[Path, set[str]]:
    """Each file of weights, with what it must hold according to the index."""
    index = folder / _INDEX
    if (folder / _WHOLE).is_file():  # taken first, as transformers does
        return {folder / _WHOLE: set()}
    if not index.is_file():
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern)]
        found = f"; pickled weights ({min(pickled)}) are never loaded: convert them" if pickled else ""
        raise UserError(f"model.source: {folder} has neither {_WHOLE} nor {_INDEX}{found}")
    shards: dict[Path, set[str]] = {}
    for weight, name in _weight_map(index).items():
        if Path(name).name != name:
            raise UserError(f"model.source: {index} names {name!r}, which is outside of the model's folder")
        shards.setdefault(folder / name, set()).add(weight)
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model.source: {index} is not readable as an index of weights") from error
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise UserError(f"model.source: {index} places no weights")
    return found


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"model.source: {path} is not readable ({one_line(str(error), 120)})") from error
    elif not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.model")):
        raise UserError(f"model.source: {folder} has no tokenizer (tokenizer.json, vocab.json or tokenizer.model)")


def _damaged(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """The first file whose size or content is not as it was recorded; contents of a large model are not read."""
    small = sum(known["size"] for known in files.values()) <= _HASHED_BYTES
    wrong: Iterable[str] = (name for name, known in files.items() if not _is_as_recorded(folder / name, known, small))
    return next(iter(wrong), None)


def _is_as_recorded(path: Path, known: dict[str, Any], read: bool) -> bool:
    if not path.is_file() or path.stat().st_size != known["size"]:
        return False
    if not read:
        return True
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == known["sha256"]
