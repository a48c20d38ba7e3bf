"""A manifest of any kind as a stream of Arrow batches with one schema.

`.parquet` keeps its types. `.csv` (UTF-8, with a header) holds texts; an empty cell is null.
`.jsonl` (one object a line) gets one type for each column; where rows conflict the column is
text, JSON text for what was none. A folder or a glob gives one row for each video file in it.
Nothing is held in memory but the batch at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pipeline.errors import UserError, one_line
from pipeline.listing import is_glob, list_files
from pipeline.manifest_batches import BATCH_ROWS, Batch, BatchSource
from pipeline.manifest_parquet import open_parquet
from pipeline.manifest_text import open_csv, open_jsonl
from pipeline.storage import check_readable, exists, is_folder, local_copy, parent

VIDEO_EXTENSIONS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")
)
_FILE_FORMATS = {".parquet": open_parquet, ".csv": open_csv, ".jsonl": open_jsonl}


@dataclass(frozen=True)
class Manifest:
    """An opened manifest: its rows, and the folder that relative paths in it start from."""

    rows: BatchSource
    folder: str


def check_manifest(uri: str) -> None:
    """Raise UserError where the manifest is missing, of no known kind or a folder without videos; reads no rows."""
    if _suffix(uri) in _FILE_FORMATS:
        check_readable(uri)
    else:
        _check_listing(uri)


def open_manifest(uri: str, scratch: Path) -> Manifest:
    """Open a manifest; a remote file is first copied to the local folder `scratch`.

    Raises UserError where it is missing, of no known kind, empty, unreadable or without a `uri` column.
    """
    opener = _FILE_FORMATS.get(_suffix(uri))
    if opener is None:
        _check_listing(uri)
        return Manifest(BatchSource(pa.schema([("uri", pa.string())]), lambda: _listed(uri)), parent(uri))
    source = opener(local_copy(uri, scratch), uri)
    names = source.schema.names
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{uri}: the column {repeated!r} stands twice")
    if "uri" not in names:
        found = one_line(", ".join(names), 200) or "none"
        raise UserError(f"{uri}: a manifest needs a column named uri; its columns: {found}")
    return Manifest(source, parent(uri))


def _suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


def _videos(uri: str) -> Iterator[str]:
    return (name for name in list_files(uri) if _suffix(name) in VIDEO_EXTENSIONS)


def _check_listing(uri: str) -> None:
    if not is_glob(uri) and not is_folder(uri):
        known = ", ".join(_FILE_FORMATS)
        what = f"a manifest is {known}, a folder or a glob of videos" if exists(uri) else "not found"
        raise UserError(f"cannot read the manifest {uri}: {what}")
    if next(_videos(uri), None) is None:
        raise UserError(f"the manifest {uri} is empty: no video files there")


def _listed(uri: str) -> Iterator[Batch]:
    names = _videos(uri)
    while some := list(islice(names, BATCH_ROWS)):
        yield Batch(pa.record_batch({"uri": pa.array(some, pa.string())}))
