"""Which files a folder or a glob holds, streamed in a fixed order.

Nothing here keeps a whole listing: an archive folder may hold millions of videos.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from fsspec.utils import glob_translate

from pipeline.errors import UserError
from pipeline.storage import filesystem_for, job_errors, local_path, scheme_of

_MAGIC = re.compile(r"[*?[]")
_PAGE = 1000  # the most keys that S3 lists in one answer


def is_glob(uri: str) -> bool:
    """Whether the uri holds a wildcard: `*`, `?` or `[`."""
    return _MAGIC.search(uri) is not None


def would_list(uri: str, name: str) -> bool:
    """Whether `list_files` of a folder or a glob yields the file `name` once that is there; both are absolute."""
    if not is_glob(uri):
        return name.startswith(uri.rstrip("/") + "/")
    return re.match(glob_translate(uri), name) is not None


def list_files(uri: str) -> Iterator[str]:
    """The files below a folder, at any depth, or those that a glob matches (`**` crosses folders).

    Yields absolute paths or s3:// uris in an order that repeats, leaving out names that start with
    a dot. Raises UserError or ClusterError where the storage cannot be listed.
    """
    return (name for name, _ in _list(uri))


def list_below(folder: str) -> Iterator[str]:
    """The files of `list_files` below a folder, whose name may hold what a glob would take for a wildcard."""
    return (name for name, _ in _walk(folder))


def list_stamped(uri: str) -> Iterator[tuple[str, str]]:
    """The files of `list_files`, each with a stamp that changes when its content does."""
    for name, stamp in _list(uri):
        yield name, stamp or file_stamp(name) or "gone"


def file_stamp(uri: str) -> str | None:
    """A file's size and ETag, or of a local one its size and time of change; None where there is no such file."""
    path = local_path(uri)
    with job_errors(uri, "look up"):
        try:
            if path is not None:
                told = path.stat()
                return f"{told.st_size} {told.st_mtime_ns}" if path.is_file() else None
            filesystem, key = filesystem_for(uri)
            info = filesystem.info(key)
        except (FileNotFoundError, NotADirectoryError):
            return None
    return f"{info['size']} {info['ETag']}" if info["type"] == "file" else None


def list_folders(uri: str) -> list[str]:
    """The names of the folders right below the folder `uri`; none where that does not exist."""
    filesystem, path = filesystem_for(uri)
    with job_errors(uri, "list"):
        try:
            entries = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
    return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]


def _list(uri: str) -> Iterator[tuple[str, str | None]]:
    """Files and, where the listing tells it, their stamp."""
    if not is_glob(uri):
        yield from _walk(uri)
        return
    steps = uri.split("/")
    fixed = next(place for place, step in enumerate(steps) if is_glob(step))
    if scheme_of(uri) == "s3" and fixed < 3:
        raise UserError(f"{uri}: the name of a bucket cannot hold a wildcard")
    root = "/".join(steps[:fixed]) or ("/" if uri.startswith("/") else ".")
    # Translated from the pattern's own steps, so that a root written as ./x or file:///x matches what _walk yields.
    matches = re.compile(glob_translate("/".join(steps[fixed:]))).match
    base = (str(path.absolute()) if (path := local_path(root)) is not None else root).rstrip("/") + "/"
    for name, stamp in _walk(root):
        if matches(name.removeprefix(base)):
            yield name, stamp


def _walk(root: str) -> Iterator[tuple[str, str | None]]:
    path = local_path(root)
    with job_errors(root, "list"):
        yield from _walk_s3(root) if path is None else _walk_local(path.absolute())


def _walk_local(folder: Path) -> Iterator[tuple[str, None]]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield str(Path(place, name)), None


def _walk_s3(root: str) -> Iterator[tuple[str, str]]:
    filesystem, path = filesystem_for(root)
    bucket, _, prefix = path.strip("/").partition("/")
    request = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": _PAGE}
    while True:
        answer = filesystem.call_s3("list_objects_v2", **request)
        for entry in answer.get("Contents", ()):
            key = entry["Key"]
            if not key.endswith("/") and not any(s.startswith(".") for s in key[len(request["Prefix"]) :].split("/")):
                yield f"s3://{bucket}/{key}", f"{entry['Size']} {entry['ETag']}"
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]
