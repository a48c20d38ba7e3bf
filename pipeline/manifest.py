"""A manifest of any kind as a stream of Arrow batches with one schema.

`.parquet` keeps its types. `.csv` (UTF-8, with a header) holds texts; an empty cell is null.
`.jsonl` (one object a line) gets one type for each column; where rows conflict the column is
text, JSON text for what was none. A folder or a glob gives one row for each video file in it; one
of manifest files and no videos is one manifest in several files. Nothing is held in memory but
the batch at hand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pipeline.errors import UserError, one_line
from pipeline.listing import is_glob, list_files, would_list
from pipeline.manifest_batches import BATCH_ROWS, Batch, BatchSource, is_unicode
from pipeline.manifest_clean import without_secrets_in_texts
from pipeline.manifest_lines import problem
from pipeline.manifest_parquet import open_parquet
from pipeline.manifest_parts import chained
from pipeline.manifest_text import open_csv, open_jsonl
from pipeline.storage import absolute, check_readable, exists, is_folder, join, local_copy, local_path, parent

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")
)
_FILE_FORMATS = {".parquet": open_parquet, ".csv": open_csv, ".jsonl": open_jsonl}
LISTED_EXTENSIONS = VIDEO_EXTENSIONS | _FILE_FORMATS.keys()
"""Of a folder or a glob, the files that may make up the manifest."""


@dataclass(frozen=True)
class Manifest:
    """An opened manifest: its rows, and the folder that relative paths in it start from."""

    rows: BatchSource
    folder: str


def check_manifest(uri: str) -> None:
    """Raise UserError where the manifest is missing, of no known kind or without files; reads no rows."""
    if _is_file(uri):
        check_readable(uri)
    else:
        _check_listing(uri)


def check_apart(uri: str, output: str) -> None:
    """Raise UserError where the files of a run on `output` would be taken for part of the manifest by the next one."""
    if _is_file(uri):
        return
    manifest, output = (os.path.realpath(path) if (path := local_path(place)) else place for place in (uri, output))
    for name in ("results/run_date=2026-11-22/run-shard-00000.parquet", "runs/run/manifest/shard-00000.parquet"):
        if would_list(manifest, join(output, name)):
            raise UserError(f"the output {output} lies in the manifest {manifest}: its files would become rows")


def open_manifest(uri: str, scratch: Path) -> Manifest:
    """Open a manifest; remote files are first copied to the local folder `scratch`.

    Relative paths start from the folder that holds the file, or from the folder that was named. A
    url in a text that carries credentials or a signature is delivered without them, but in `uri`
    and `video_id`. Raises UserError where the manifest is missing, of no known kind, empty,
    unreadable or without a `uri` column.
    """
    if _is_file(uri):
        source, folder = _open_file(uri, scratch), parent(uri)
    else:
        _check_listing(uri)
        folder = _root(uri)
        source = _listing(uri) if _first(_videos(uri)) else chained(list(_parts(uri, scratch)))
    if "uri" not in source.schema.names:
        found = one_line(", ".join(source.schema.names), 200) or "none"
        raise UserError(f"{uri}: a manifest needs a column named uri; its columns: {found}")
    return Manifest(without_secrets_in_texts(source), folder)


def _open_file(uri: str, scratch: Path) -> BatchSource:
    source = _FILE_FORMATS[_suffix(uri)](local_copy(uri, scratch), uri)
    names = source.schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{uri}: the column {repeated!r} stands twice")
    return source


def _parts(uri: str, scratch: Path) -> Iterator[BatchSource]:
    for name in _part_names(uri):
        if local_copy(name, scratch).stat().st_size:  # writers leave empty files where they had no rows
            yield _open_file(name, scratch)


def _is_file(uri: str) -> bool:
    if _suffix(uri) not in _FILE_FORMATS:
        return False
    return exists(uri) if is_glob(uri) else not is_folder(uri)


def _root(uri: str) -> str:
    """The folder itself, or the part of a glob that holds no wildcard."""
    fixed = "/".join(takewhile(lambda step: not is_glob(step), uri.split("/")))
    return absolute(fixed or ("/" if uri.startswith("/") else "."))


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


def _first(names: Iterator[str]) -> str | None:
    return next(names, None)


def _videos(uri: str) -> Iterator[str]:
    return (name for name in list_files(uri) if _suffix(name) in VIDEO_EXTENSIONS)


def _part_names(uri: str) -> Iterator[str]:
    """Manifest files in a folder or a glob, without what a writer such as Spark has not finished (`_temporary/...`)."""
    root = _root(uri).rstrip("/") + "/"
    for name in list_files(uri):
        steps = name.removeprefix(root).split("/")
        if _suffix(name) in _FILE_FORMATS and not any(step.startswith("_") for step in steps):
            yield name


def _check_listing(uri: str) -> None:
    if not is_glob(uri) and not is_folder(uri):
        known = ", ".join(_FILE_FORMATS)
        what = f"a manifest is {known}, a folder or a glob of videos" if exists(uri) else "not found"
        raise UserError(f"cannot read the manifest {uri}: {what}")
    if not _first(_videos(uri)) and not _first(_part_names(uri)):
        raise UserError(f"the manifest {uri} is empty: no video files there")


def _listing(uri: str) -> BatchSource:
    return BatchSource(pa.schema([("uri", pa.string())]), lambda: _listed(uri))


def _listed(uri: str) -> Iterator[Batch]:
    names = _videos(uri)
    while some := list(islice(names, BATCH_ROWS)):
        # A disk may hold names that are no UTF-8; Python tells them with half surrogate pairs.
        readable = [name if is_unicode([name]) else None for name in some]
        problems = {
            place: problem(f"the name of the file is not UTF-8: {name!r}", name)
            for place, name in enumerate(some)
            if readable[place] is None
        }
        yield Batch(pa.record_batch({"uri": pa.array(readable, pa.string())}), problems)
