"""Whether a manifest is the one that was planned before, told without reading it."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath

from pipeline.listing import file_stamp, list_stamped
from pipeline.manifest import LISTED_EXTENSIONS, VIDEO_EXTENSIONS
from pipeline.storage import absolute


def manifest_identity(uri: str) -> str:
    """A hash of the manifest's uri and of name, size and ETag (local: time of change) of the files that make it up.

    Raises UserError or ClusterError where they cannot be looked up. To be asked before the manifest
    is read: what changes in between then counts as another manifest, and is planned the next time.
    """
    stamp = file_stamp(uri)
    if stamp is not None:
        return _hash(uri, stamp.encode())
    videos, others = hashlib.sha256(), hashlib.sha256()
    listed = False
    for name, stamp in list_stamped(uri):
        kind = PurePosixPath(name).suffix.lower()
        if kind in LISTED_EXTENSIONS:
            listed |= kind in VIDEO_EXTENSIONS
            told = videos if kind in VIDEO_EXTENSIONS else others
            told.update(f"{name}\0{stamp}\0".encode(errors="surrogateescape"))
    # Beside videos other files are not read; an output below the folder must not make the manifest another one.
    return _hash(uri, (videos if listed else others).digest())


def _hash(uri: str, content: bytes) -> str:
    return hashlib.sha256(absolute(uri).encode(errors="surrogateescape") + b"\0" + content).hexdigest()[:32]
