"""Reading a small file together with its version, and replacing it only while it still has that version.

Of any number of processes that replace one version, exactly one succeeds. S3 decides by the ETag
(a PUT with If-Match, or If-None-Match where there must be no file yet); on a local disk the file is
compared and rewritten in place under flock, so that nothing lies beside it when a process dies.
A writer must not repeat itself: a version names the content.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from botocore.exceptions import ClientError
from fsspec.asyn import sync
from s3fs.errors import translate_boto_error

from pipeline.errors import UserError
from pipeline.storage import filesystem_for, job_errors, local_path, write_atomic

if TYPE_CHECKING:
    from s3fs import S3FileSystem

_LOCK_POLL_S = 0.01
_CONFLICT_STATUS = {409, 412}  # 409: another conditional request for the same key is under way


class VersionConflict(Exception):
    """The file has another version than the one that was to be replaced, or is gone, or is there already.

    On S3 it can also mean that an earlier try of the same write went through and its answer was lost.
    """


@dataclass(frozen=True)
class VersionedFile:
    """A file's content and what `write_if_version` needs to replace just this content."""

    data: bytes
    version: str


def read_versioned(uri: str, timeout_s: float) -> VersionedFile | None:
    """The file at `uri`, None where there is none. Raises UserError or ClusterError, the latter after `timeout_s`."""
    path = local_path(uri)
    with job_errors(uri, "read"):
        return _read_local(path, timeout_s) if path is not None else _on_s3(uri, timeout_s, _get)


def write_if_version(uri: str, data: bytes, version: str | None, timeout_s: float) -> str:
    """Put `data` in the place of `version`, or of nothing where that is None; the answer is the new version.

    Raises VersionConflict where something else is there. UserError and ClusterError, the latter at
    the latest after `timeout_s`, leave open whether the write went through.
    """
    path = local_path(uri)

    async def put(filesystem: S3FileSystem, place: dict[str, str]) -> str:
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        client = await filesystem.get_s3(place["Bucket"])
        return str((await client.put_object(**place, Body=data, **condition))["ETag"])

    with job_errors(uri, "write"):
        try:
            return _write_local(path, data, version, timeout_s) if path is not None else _on_s3(uri, timeout_s, put)
        except ClientError as error:
            status, code = _told(error)
            if status in _CONFLICT_STATUS or (version is not None and code == "NoSuchKey"):
                raise VersionConflict(uri) from error
            if status == 501:
                raise UserError(f"cannot write {uri}: the storage does not know conditional writes") from error
            raise translate_boto_error(error) from error


def replace_whole(uri: str, data: bytes, version: str | None, timeout_s: float) -> None:
    """Write a file that many read, so that they see all of it or nothing; on S3 only in the place of `version`.

    There the client repeats a request, and it may arrive long after it was made. A local write ends with its process,
    right behind whatever check came before it, and replaces any version.
    """
    if local_path(uri) is not None:
        write_atomic(uri, data)
    else:
        write_if_version(uri, data, version, timeout_s)


async def _get(filesystem: S3FileSystem, place: dict[str, str]) -> VersionedFile | None:
    client = await filesystem.get_s3(place["Bucket"])
    try:
        answer = await client.get_object(**place)
    except ClientError as error:
        if _told(error)[1] == "NoSuchKey":
            return None
        raise translate_boto_error(error) from error
    async with answer["Body"] as body:
        return VersionedFile(await body.read(), answer["ETag"])


def _on_s3(uri: str, timeout_s: float, request: Callable[[S3FileSystem, dict[str, str]], Awaitable[Any]]) -> Any:
    """One request with the client's own retries, given up after `timeout_s`."""
    filesystem, path = filesystem_for(uri)
    bucket, key, _ = filesystem.split_path(path)

    async def bounded() -> Any:
        async with asyncio.timeout(timeout_s):
            await filesystem.set_session()
            return await request(filesystem, {"Bucket": bucket, "Key": key})

    try:
        return sync(filesystem.loop, bounded)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from error
    except aiohttp.ClientError as error:
        raise ConnectionError(f"the connection broke: {error}") from error


def _told(error: ClientError) -> tuple[int, str]:
    """HTTP status and error code of an answer of S3."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(error.response.get("Error", {}).get("Code"))


def _read_local(path: Path, timeout_s: float) -> VersionedFile | None:
    try:
        with path.open("rb") as file, _locked(file.fileno(), fcntl.LOCK_SH, timeout_s):
            data = file.read()
    except FileNotFoundError:
        return None
    return VersionedFile(data, _version(data)) if data else None


def _write_local(path: Path, data: bytes, version: str | None, timeout_s: float) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with _locked(descriptor, fcntl.LOCK_EX, timeout_s):
            found = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            if (_version(found) if found else None) != version:
                raise VersionConflict(str(path))
            os.pwrite(
                descriptor, data, 0
            )  # before the cut: who dies in between must not leave an empty file, which is none
            os.ftruncate(descriptor, len(data))
    finally:
        os.close(descriptor)
    return _version(data)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _locked(descriptor: int, kind: int, timeout_s: float) -> Iterator[None]:
    """Hold flock. TimeoutError where a process keeps it, which is stopped in the middle of its few microseconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError("another process keeps it locked") from error
        time.sleep(_LOCK_POLL_S)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
