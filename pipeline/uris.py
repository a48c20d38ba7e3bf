"""What a uri of a video may look like, and the same video written in two ways made one."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import parse_qsl

from pipeline.errors import RowError, is_secret_name
from pipeline.storage import local_path, scheme_of

MAX_URI = 4096
_USERINFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*:/+)[^/?#]*@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def without_secrets(uri: str) -> str:
    """`uri` unchanged where it carries no secret; else without its user name, query and fragment."""
    bare, *rest = re.split(r"[?#]", uri)
    named = any(is_secret_name(name) for part in rest for name, _ in parse_qsl(part, keep_blank_values=True))
    return _USERINFO.sub(r"\1", bare) if named or _USERINFO.match(uri) else uri


def without_query(uri: str) -> str:
    """A uri with a scheme without what follows its first `?`; a plain path may hold a question mark."""
    return uri.partition("?")[0] if scheme_of(uri) else uri


def resolve(uri: str, folder: str) -> str:
    """The full uri of a video named in a manifest that lies in `folder`.

    Plain paths and file:// become absolute local paths, or objects beside the manifest where
    that lies on S3; `.` and `..` are worked out, so that one video has one spelling. Raises
    RowError at stage manifest: uri_credentials, uri_scheme, row_too_large or bad_row.
    """
    if len(uri) > MAX_URI:
        raise RowError("manifest", "row_too_large", f"the uri has {len(uri)} characters; at most {MAX_URI} are allowed")
    if without_secrets(uri) != uri:
        raise RowError(
            "manifest", "uri_credentials", f"the uri {without_secrets(uri)} carries credentials or a signature"
        )
    if _CONTROL.search(uri):
        raise RowError("manifest", "bad_row", f"the uri {uri!r} holds control characters")
    scheme = scheme_of(uri)
    if scheme == "s3":
        return _object(uri)
    if scheme == "file":
        return posixpath.normpath(str(local_path(uri)))
    if scheme:
        raise RowError("manifest", "uri_scheme", f"{scheme}:// is not supported: use a path, file:// or s3://")
    if Path(uri).is_absolute():
        return posixpath.normpath(uri)
    if scheme_of(folder) == "s3":
        return _beside(uri, folder)
    return posixpath.normpath(posixpath.join(str(local_path(folder)), uri))


def _object(uri: str) -> str:
    bucket, _, key = uri[len("s3://") :].partition("/")
    if uri[3:5] != "//" or not bucket or not key or key.endswith("/"):
        raise RowError("manifest", "bad_row", f"{uri} names no object: s3://bucket/key is needed")
    return f"s3://{bucket}/{key}"


def _beside(name: str, folder: str) -> str:
    bucket, _, prefix = folder[len("s3://") :].partition("/")
    key = posixpath.normpath(posixpath.join("/", prefix, name))
    # normpath stops at the root: a path that climbs out of the bucket would silently name another object.
    if posixpath.normpath(posixpath.join(prefix or ".", name)).startswith(".."):
        raise RowError("manifest", "bad_row", f"the path {name} leads out of the bucket")
    return _object(f"s3://{bucket}{key}")
