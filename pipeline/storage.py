"""Files on a local disk or on S3, with errors that say who must act.

Uris are local paths, `file://` or `s3://`. Job-level functions raise `UserError` where the user
must change something (not found, forbidden, not writable) and `ClusterError` where the storage
could not be reached after retries; `fetch_video` speaks of one row and raises `RowError`.
Writes are atomic: a reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError, ProfileNotFound
from fsspec.exceptions import FSTimeoutError

from pipeline.errors import ClusterError, RowError, UserError, one_line

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_LOGIN = (PermissionError, NoCredentialsError, PartialCredentialsError, ProfileNotFound)
_UNREACHABLE = (
    OSError,
    BotoCoreError,
    FSTimeoutError,
)  # OSError: what s3fs makes of 5xx answers and broken connections
# Short: four tries over some seconds, so that a wrong endpoint is reported before a coffee is made.
_S3_CONFIG: dict[str, Any] = {
    "connect_timeout": 5,
    "read_timeout": 60,
    "max_pool_connections": 32,  # the videos of one process are read in up to eight ranges at a time each
    "retries": {"mode": "standard", "total_max_attempts": 4},
}


def scheme_of(uri: str) -> str:
    """The lower-case scheme of a uri, "" for a plain path."""
    match = _SCHEME.match(uri)
    return match[1].lower() if match else ""


def local_path(uri: str) -> Path | None:
    """The path that a plain path or a file:// uri names; None for a remote uri."""
    scheme = scheme_of(uri)
    if scheme == "":
        return Path(uri)
    return (
        Path(unquote(re.sub(r"^file:/+(?:localhost/)?", "/", uri, flags=re.IGNORECASE))) if scheme == "file" else None
    )


def filesystem_for(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem behind a uri, and the path of the uri on it. Unknown schemes raise UserError."""
    path = local_path(uri)
    if path is not None:
        return fsspec.filesystem("file"), str(path.absolute())
    if scheme_of(uri) != "s3":
        raise UserError(f"{uri}: only local paths, file:// and s3:// are supported")
    # Listings are not cached: another process writes to the same prefixes. The endpoint is part of the
    # arguments, and so of fsspec's instance cache: a changed AWS_ENDPOINT_URL gets a new client.
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    filesystem = fsspec.filesystem("s3", endpoint_url=endpoint, config_kwargs=_S3_CONFIG, use_listings_cache=False)
    return filesystem, uri[len("s3:") :].lstrip("/")


@contextmanager
def job_errors(uri: str, action: str) -> Iterator[None]:
    """Turn what `action` (as in "cannot read") on `uri` raises into UserError or ClusterError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"cannot {action} {uri}: not found") from error
    except _NO_LOGIN as error:
        raise UserError(f"cannot {action} {uri}: permission denied ({_reason(error)})") from error
    except _UNREACHABLE as error:
        # A local disk answers at once: what it refuses, trying again will not mend.
        kind = UserError if local_path(uri) is not None else ClusterError
        raise kind(f"cannot {action} {uri}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The error's own words; s3fs reports some failures with an empty message."""
    return one_line(getattr(error, "strerror", None) or str(error), limit=160) or type(error).__name__


def join(base: str, *parts: str) -> str:
    """`base` and `parts` with one slash between them."""
    return "/".join([base.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """`uri` as it reads from any working directory: local ones as absolute paths, remote ones without a last slash."""
    path = local_path(uri)
    return str(path.absolute()) if path is not None else uri.rstrip("/")


def parent(uri: str) -> str:
    """The folder that holds `uri`: what relative paths in a manifest are relative to."""
    return absolute(uri).rpartition("/")[0] or "/"


def exists(uri: str) -> bool:
    """Whether a file or a folder (on S3: a prefix with something in it) is there."""
    filesystem, path = filesystem_for(uri)
    with job_errors(uri, "look up"):
        return bool(filesystem.exists(path))


def is_folder(uri: str) -> bool:
    """Whether `uri` is a folder (on S3: a prefix with something in it)."""
    filesystem, path = filesystem_for(uri)
    with job_errors(uri, "look up"):
        return bool(filesystem.isdir(path))


def read_bytes(uri: str) -> bytes:
    """The whole content of a small file."""
    filesystem, path = filesystem_for(uri)
    with job_errors(uri, "read"):
        return bytes(filesystem.cat_file(path))


def local_copy(uri: str, folder: Path) -> Path:
    """`uri` as a local file: itself where it is one, else downloaded into `folder`."""
    path = local_path(uri)
    with job_errors(uri, "read"):
        if path is not None:
            path.open("rb").close()
            return path
        return _download(uri, folder)


def _download(uri: str, folder: Path) -> Path:
    filesystem, path = filesystem_for(uri)
    target = folder / f"{uuid.uuid4().hex}{Path(path).suffix[:16]}"
    try:
        filesystem.get_file(path, str(target))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    if not target.is_file():  # s3fs makes a folder of an object whose key ends in a slash
        shutil.rmtree(target, ignore_errors=True)
        raise IsADirectoryError(uri)
    return target


def fetch_video(uri: str, folder: Path) -> tuple[Path, int]:
    """One row's video as a local file, and the bytes that were transferred or lie there.

    A local video is used where it lies; a remote one is downloaded into `folder`, which the
    caller owns. Raises RowError at stage fetch: not_found, forbidden or fetch_failed.
    """
    with fetch_errors(uri):
        path = local_path(uri)
        if path is None:
            path = _download(uri, folder)
        elif path.exists() and not path.is_file():
            raise IsADirectoryError(uri)  # or a pipe, whose open would wait for a writer
        else:
            path.open("rb").close()
        return path, path.stat().st_size


@contextmanager
def fetch_errors(uri: str) -> Iterator[None]:
    """Turn what reading the video `uri` raises into RowErrors at stage fetch: not_found, forbidden, fetch_failed."""
    try:
        yield
    except _MISSING as error:
        raise RowError("fetch", "not_found", f"{uri} was not found") from error
    except _NO_LOGIN as error:
        raise RowError("fetch", "forbidden", f"{uri}: {_reason(error)}") from error
    except (*_UNREACHABLE, UserError, ValueError) as error:  # ValueError: an embedded NUL, a bucket without a key
        raise RowError("fetch", "fetch_failed", f"{uri}: {_reason(error)}") from error


def write_atomic(uri: str, data: bytes | Path) -> None:
    """Write bytes, or a copy of a local file, so that readers see all of it or nothing.

    Local: a temporary file in the same folder, flushed to disk, renamed. S3: one PUT (for files
    of more than 100 MB a multipart upload, which appears when it is complete).
    """
    with job_errors(uri, "write"):
        _write(uri, data)


def _write(uri: str, data: bytes | Path) -> None:
    target = local_path(uri)
    if target is not None:
        _write_local(target.absolute(), data)
        return
    filesystem, path = filesystem_for(uri)
    if isinstance(data, bytes):
        filesystem.pipe_file(path, data)
    else:
        filesystem.put_file(str(data), path)


def _write_local(target: Path, data: bytes | Path) -> None:
    if target.exists() and not target.is_file():
        # Renaming over it would take a device or a pipe away, as root even /dev/null.
        raise UserError(f"{target} is not a regular file")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                with data.open("rb") as source:
                    shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def delete(uri: str) -> None:
    """Remove one file."""
    filesystem, path = filesystem_for(uri)
    with job_errors(uri, "delete"):
        filesystem.rm_file(path)


def check_readable(uri: str) -> None:
    """Raise UserError unless the file `uri` can be opened."""
    filesystem, path = filesystem_for(uri)
    with job_errors(uri, "read"), filesystem.open(path, "rb", cache_type="none") as file:
        file.read(1)


def check_writable(output: str) -> None:
    """Raise UserError unless files can be written to and deleted from the folder `output`."""
    probe = join(output, f".write-test-{uuid.uuid4().hex[:8]}")
    with job_errors(output, "write to"):
        _write(probe, b"")
        filesystem, path = filesystem_for(probe)
        filesystem.rm_file(path)
