"""Models that lie elsewhere: what is fetched of them, and how from an S3 prefix.

Only what `is_model_file` knows is listed or fetched, from the top folder: no pickle and no code.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import ClusterError, UserError
from pipeline.storage import filesystem_for, job_errors

_MD5 = re.compile(r"[0-9a-f]{32}")
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model; `checksum` is of its content, "md5:…", "sha256:…" or "git:…" (None: none is known)."""

    name: str
    size: int
    checksum: str | None


@dataclass(frozen=True)
class Listing:
    """What a remote model holds; `version` (a file name) changes when any of its files does."""

    version: str
    files: tuple[RemoteFile, ...]


class RemoteModel(Protocol):
    """A model somewhere else; errors are UserError (not found, forbidden) and ClusterError (unreachable)."""

    @property
    def name(self) -> str:
        """Of the folder that it becomes."""
        ...

    @property
    def place(self) -> str:
        """Where it lies, whichever version."""
        ...

    def known_version(self) -> str | None:
        """The version, where the source itself names it: nothing needs to be asked."""
        ...

    def listing(self, version: str | None = None) -> Listing:
        """Its files now, or those of `version`; UserError where that is gone."""
        ...

    def download(self, listing: Listing, folder: Path) -> None:
        """Fetch the files of a listing into an existing, empty folder, each checked."""
        ...


@dataclass(frozen=True)
class S3Model:
    """The files right below an s3:// prefix."""

    source: str

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return re.sub(r"[^A-Za-z0-9._-]", "_", self.place.rpartition("/")[2]).lstrip(".") or "model"

    @property
    def place(self) -> str:
        """The prefix."""
        return self.source.rstrip("/")

    def known_version(self) -> None:
        """A prefix names none."""
        return None

    def listing(self, version: str | None = None) -> Listing:
        """Names, sizes and ETags; the version is a digest of all three."""
        filesystem, path = filesystem_for(self.source)
        with job_errors(self.source, "read"):
            found = filesystem.ls(path, detail=True)
        files: list[RemoteFile] = []
        digest = hashlib.sha256()
        for item in sorted(found, key=lambda item: item["name"]):
            name, etag = item["name"].rpartition("/")[2], item.get("ETag", "").strip('"')
            if item["type"] != "file" or not is_model_file(name):
                continue
            digest.update(f"{name}\n{item['size']}\n{etag}\n".encode())
            # Of an upload in parts the ETag is a digest of digests.
            files.append(RemoteFile(name, item["size"], f"md5:{etag}" if _MD5.fullmatch(etag) else None))
        listing = Listing(digest.hexdigest()[:40], checked(files, self.source))
        if version not in (None, listing.version):
            raise UserError(f"{self.source} has changed since the job looked at it: start the job again")
        return listing

    def download(self, listing: Listing, folder: Path) -> None:
        """Fetch, check what the ETags say, and look again whether the prefix was left alone meanwhile."""
        filesystem, path = filesystem_for(self.source)
        for file in listing.files:
            key, target = f"{path.rstrip('/')}/{file.name}", folder / file.name
            with job_errors(f"{self.place}/{file.name}", "fetch"), disk_errors():
                filesystem.get_file(key, str(target))
                has_arrived = matches(target, file) or (_has_size(target, file) and _is_encrypted(filesystem, key))
            if not has_arrived:
                self.listing(listing.version)  # replaced meanwhile: a clearer reason
                raise ClusterError(f"{self.place}/{file.name} arrived damaged: start the job again")
        self.listing(listing.version)


def is_model_file(name: str) -> bool:
    """Whether a file of this name, relative to the model's folder, is one to fetch: the engine reads it."""
    from pipeline.engine.checkpoint import CONTENT_FILES  # late: a folder or a built-in model needs no torch here
    from pruning.calibration import OWN_FILE

    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in (*CONTENT_FILES, OWN_FILE))


def checked(files: list[RemoteFile], source: str) -> tuple[RemoteFile, ...]:
    """`files`, or UserError if they are not a model."""
    names = [file.name for file in files]
    if "config.json" not in names:
        raise UserError(f"{source}: no config.json, so not a model in the Hugging Face layout")
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"{source}: no .safetensors weights")
    return tuple(files)


def _has_size(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def matches(path: Path, file: RemoteFile) -> bool:
    """Whether size and digest of a local file are those of the remote one."""
    if not _has_size(path, file):
        return False
    if file.checksum is None:
        return True
    kind, _, expected = file.checksum.partition(":")
    digest = hashlib.new({"git": "sha1"}.get(kind, kind), usedforsecurity=False)
    if kind == "git":
        digest.update(f"blob {file.size}\0".encode())
    with path.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest() == expected


def _is_encrypted(filesystem: Any, key: str) -> bool:
    """Whether S3 keeps an object under a key of its own: then the ETag has the form of an MD5 and is none."""
    bucket, _, rest = key.partition("/")
    head = filesystem.call_s3("head_object", Bucket=bucket, Key=rest)
    return "kms" in str(head.get("ServerSideEncryption")) or "SSECustomerAlgorithm" in head


@contextmanager
def disk_errors() -> Iterator[None]:
    """A full disk is the user's to change; storage errors, which are OSErrors as well, pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise UserError(
                f"{error.strerror} in the model cache: free some, or let HIERAVID_CACHE name another"
            ) from error
        raise
