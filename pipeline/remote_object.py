"""One object of a remote storage, read in ranges; S3 with one request a range, any other filesystem through fsspec.

Both say by `ObjectChanged` that the bytes of one request are not of the same object as those of an
earlier one. Other failures are the filesystem's own exceptions; trying again is the caller's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import fsspec
from botocore.exceptions import ClientError, HTTPClientError
from botocore.exceptions import ConnectionError as NoConnectionError
from fsspec.asyn import sync
from s3fs.errors import translate_boto_error

from pipeline.storage import filesystem_for, scheme_of
from pipeline.video.byte_ranges import merged
from pipeline.video.file import ByteRange

if TYPE_CHECKING:
    from s3fs import S3FileSystem

Sink = Callable[[int, bytes], None]
"""Takes bytes and the place in the file that they belong to; called from any thread."""

_PIECE = 1024 * 1024
# A server may send a byte a minute and break no other limit; at this rate a request is given up.
_SLOWEST_BYTES_PER_S = 32 * 1024
_REQUEST_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_SERVER_ERROR = 500  # and above; S3 throttles with 503
_CHANGED = {"PreconditionFailed", "412", "InvalidRange", "416"}


class ObjectChanged(Exception):
    """The object is not the one that was read from before."""


class StorageAway(OSError):
    """The storage takes no connection, breaks it before it answers, or answers that it cannot serve now."""


class RemoteObject(Protocol):
    """What RemoteFile asks of a storage."""

    def begin(self, count: int, sink: Sink) -> tuple[int, list[ByteRange]]:
        """The first `count` bytes; returns the object's size and what was handed to `sink`.

        That is everything where the storage does not serve ranges.
        """
        ...

    def read(self, begin: int, end: int, sink: Sink) -> None:
        """All the bytes of one range, in order; several threads may read at a time."""
        ...

    def check(self) -> None:
        """Raise ObjectChanged where that shows only now."""
        ...


def open_object(uri: str) -> RemoteObject:
    """The object that a remote uri names; no request is made yet."""
    if scheme_of(uri) == "s3":
        return S3Object(*filesystem_for(uri))
    return FilesystemObject(*fsspec.url_to_fs(uri))


class S3Object:
    """An object on S3, held to its ETag: by the server (If-Match), and here where it does not know that header."""

    def __init__(self, filesystem: S3FileSystem, path: str) -> None:
        """`path` is bucket/key; ValueError without a key."""
        self._filesystem = filesystem
        bucket, key, version = filesystem.split_path(path)
        if not key:
            raise ValueError("this is a bucket, not a file")
        self._object = {"Bucket": bucket, "Key": key} | ({"VersionId": version} if version else {})
        self._version: tuple[str | None, int] | None = None  # ETag and size

    def begin(self, count: int, sink: Sink) -> tuple[int, list[ByteRange]]:
        """One request: its answer tells the size."""
        self._version = None
        try:
            return self._run(0, count, sink)
        except ObjectChanged:  # nothing of an empty object can be asked for by range
            return self._run(0, None, sink)

    def read(self, begin: int, end: int, sink: Sink) -> None:
        """One request."""
        _, delivered = self._run(begin, end, sink)
        if delivered != [(begin, end)]:
            raise ConnectionError(f"bytes {begin}-{end} were asked for, {delivered} came")

    def check(self) -> None:
        """Each request has checked it."""

    def _run(self, begin: int, end: int | None, sink: Sink) -> tuple[int, list[ByteRange]]:
        try:
            return sync(self._filesystem.loop, self._get, begin, end, sink)
        except ClientError as error:
            if str(error.response.get("Error", {}).get("Code")) in _CHANGED:
                raise ObjectChanged from error
            raise translate_boto_error(error) from error
        except aiohttp.ClientError as error:
            raise ConnectionError(f"the connection broke: {error}") from error

    async def _get(self, begin: int, end: int | None, sink: Sink) -> tuple[int, list[ByteRange]]:
        """The object's size and the range that arrived."""
        asked: dict[str, Any] = dict(self._object)
        if end is not None:
            asked["Range"] = f"bytes={begin}-{end - 1}"
        if self._version and self._version[0]:
            asked["IfMatch"] = self._version[0]
        async with asyncio.timeout(_REQUEST_S) as limit:
            await self._filesystem.set_session()
            # Not through s3fs's own call: its retries and botocore's and the caller's would multiply.
            client = await self._filesystem.get_s3(asked["Bucket"])
            response = await _begin_answer(client, asked)
            async with response["Body"] as body:
                place, last, size = _place(response)
                version = (response.get("ETag"), size)
                if self._version not in (None, version):
                    raise ObjectChanged
                limit.reschedule(limit.when() + (last - place) / _SLOWEST_BYTES_PER_S)
                arrived = place
                while piece := await body.read(_PIECE):
                    sink(arrived, piece)
                    arrived += len(piece)
        if arrived != last:
            raise ConnectionError(f"the answer ended after {arrived - place} of {last - place} bytes")
        self._version = version
        return size, merged([(place, arrived)])


async def _begin_answer(client: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, its body still to come."""
    try:
        return await client.get_object(**asked)
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= _SERVER_ERROR:
            raise StorageAway(str(translate_boto_error(error))) from error
        raise
    except (NoConnectionError, HTTPClientError, aiohttp.ClientError) as error:
        raise StorageAway(str(error) or type(error).__name__) from error


def _place(response: dict[str, Any]) -> tuple[int, int, int]:
    """First byte, the one behind the last, and the size of the object that an answer of S3 speaks of."""
    told = response.get("ContentRange")
    if told is None:  # all of it: no range was asked for, or the server does not know ranges
        return 0, response["ContentLength"], response["ContentLength"]
    match = _CONTENT_RANGE.fullmatch(told)
    if match is None:
        raise ConnectionError(f"the answer is for {told!r}, which is no range of bytes")
    first, last, size = (int(number) for number in match.groups())
    return first, last + 1, size


class FilesystemObject:
    """A file of any fsspec filesystem. That it changed is seen by what the filesystem says of it."""

    def __init__(self, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
        """`path` as the filesystem knows it."""
        self._filesystem = filesystem
        self._path = path
        self._description = ""

    def begin(self, count: int, sink: Sink) -> tuple[int, list[ByteRange]]:
        """A look-up, and one request; all of it in one stream where ranges are not served or the size is unknown."""
        info = self._filesystem.info(self._path)
        if info.get("type") == "directory":
            raise IsADirectoryError(self._path)
        self._description = _describe(info)
        size = info.get("size")
        if size is not None:
            end = min(count, size)
            data = self._filesystem.cat_file(self._path, start=0, end=end) if size else b""
            if len(data) == end:
                sink(0, data)
                return size, merged([(0, end)])
        return self._stream(sink)

    def read(self, begin: int, end: int, sink: Sink) -> None:
        """One request."""
        data = self._filesystem.cat_file(self._path, start=begin, end=end)
        if len(data) != end - begin:
            raise ConnectionError(f"{end - begin} bytes were asked for, {len(data)} came")
        sink(begin, data)

    def check(self) -> None:
        """One look-up."""
        if _describe(self._filesystem.info(self._path)) != self._description:
            raise ObjectChanged

    def _stream(self, sink: Sink) -> tuple[int, list[ByteRange]]:
        arrived = 0
        with self._filesystem.open(self._path, "rb") as file:
            while piece := file.read(_PIECE):
                sink(arrived, piece)
                arrived += len(piece)
        return arrived, merged([(0, arrived)])


def _describe(info: dict[str, Any]) -> str:
    return repr(sorted((key, str(value)) for key, value in info.items()))
