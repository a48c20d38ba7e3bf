"""A job's model as a folder on this machine: fetched once a node, checked, shared by all processes and later jobs.

    <cache>/models/<name>-<place>/<version>/fetched.json      what was fetched, with sizes and digests
                                            <name>/…          the model's files

A version's folder appears by a rename, when all of it is there and checked; a lock file lets one process
fetch it while the others wait. The cache is ~/.cache/hieravid, or the folder that HIERAVID_CACHE names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from pipeline.errors import ClusterError, UserError
from pipeline.model_hub import HubModel
from pipeline.model_remote import Listing, RemoteModel, S3Model
from pipeline.storage import local_path, scheme_of

_RECORD = "fetched.json"


def cache_folder() -> Path:
    """Where fetched models lie on this machine."""
    return Path(os.environ.get("HIERAVID_CACHE") or "~/.cache/hieravid").expanduser().absolute() / "models"


def model_version(source: str) -> str | None:
    """What a remote `source` holds now, as `local_model` takes it; None for a folder or a built-in model.

    Raises UserError where the model is not found or forbidden, ClusterError where nobody answers.
    """
    with _named(source):
        remote = _remote(source)
        return remote and (remote.known_version() or remote.listing().version)


def local_model(source: str, version: str | None = None) -> Path | str:
    """The folder that holds the model `source` on this machine, fetched if it is not there yet.

    `source` is a built-in model (returned as it is), a folder, an s3:// prefix or a hub id
    `owner/name[@revision]`; what exists as a folder is one. Of a remote model it is what is there
    now, or the named `version`, for which nothing is asked where it is in the cache. Raises
    UserError where something must be changed (no such model, no permission, no room, another
    version by now), ClusterError where storage or hub cannot be reached.
    """
    with _named(source):
        remote = _remote(source)
        if remote is None:
            return source if source.startswith("builtin:") else (local_path(source) or Path(source)).absolute()
        version = version or remote.known_version()
        listing = None
        if version is None:
            listing = remote.listing()
            version = listing.version
        folder = cache_folder() / f"{remote.name}-{hashlib.sha256(remote.place.encode()).hexdigest()[:8]}" / version
        if not _is_intact(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not _is_intact(folder):  # while we waited another process may have fetched it
                    _fetch(remote, listing or remote.listing(version), folder)
        return folder / remote.name


def _remote(source: str) -> RemoteModel | None:
    """What lies elsewhere; None for what is on this machine."""
    if source.startswith("builtin:"):
        return None
    scheme = scheme_of(source)
    if scheme == "s3":
        return S3Model(source)
    if scheme not in ("", "file"):
        raise UserError(f"{source}: a folder, an s3:// prefix or a hub id (owner/name) is needed")
    return HubModel.parse(source) if scheme == "" and not Path(source).exists() else None


def _fetch(remote: RemoteModel, listing: Listing, folder: Path) -> None:
    """Make `folder` whole: everything in a folder beside it, checked and recorded, then one rename."""
    partial = folder.with_name(f".{folder.name}.partial")
    for left_over in (partial, folder):
        shutil.rmtree(left_over, ignore_errors=True)
    model = partial / remote.name
    try:
        model.mkdir(parents=True)
        _check_room(listing, partial)
        remote.download(listing, model)
        _record(listing, model, partial / _RECORD)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_room(listing: Listing, folder: Path) -> None:
    needed = sum(file.size for file in listing.files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"its {needed / 2**30:.1f} GiB do not fit into the model cache, which has {free / 2**30:.1f} GiB free: "
            f"free some of {cache_folder()}, or let HIERAVID_CACHE name another"
        )


def _record(listing: Listing, model: Path, record: Path) -> None:
    """Write down what is there, and let it reach the disk: after a power cut a name alone must not count."""
    files = {}
    for file in listing.files:
        path = model / file.name
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            os.fsync(content.fileno())
        status = path.stat()
        files[file.name] = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
    for other in set(model.iterdir()) - {model / name for name in files}:  # a client's own notes
        shutil.rmtree(other) if other.is_dir() else other.unlink()
    with record.open("w") as out:
        json.dump({"version": listing.version, "name": model.name, "files": files}, out, indent=1)
        out.flush()
        os.fsync(out.fileno())


def _is_intact(folder: Path) -> bool:
    """Whether a version is there as it was recorded: by size and time, or else by the files' digests."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        for name, known in record["files"].items():
            path = folder / record["name"] / name
            status = path.stat()
            if status.st_size != known["size"]:
                return False
            if status.st_mtime_ns != known["mtime_ns"]:  # copied, or changed
                with path.open("rb") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != known["sha256"]:
                        return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


@contextmanager
def _named(source: str) -> Iterator[None]:
    """Let errors begin with the key that a user would look at; what is still an OSError is the cache's disk's."""
    try:
        yield
    except (UserError, ClusterError) as error:
        told = str(error)
        raise type(error)(f"model.source: {told if source.rstrip('/') in told else f'{source}: {told}'}") from error
    except OSError as error:
        raise UserError(
            f"model.source: {source}: the model cache {cache_folder()} cannot be written "
            f"({error.strerror or error}): let HIERAVID_CACHE name another folder"
        ) from error
