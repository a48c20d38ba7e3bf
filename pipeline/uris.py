"""What a uri of a video may look like, and the same video written in two ways made one."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import unquote, unquote_plus

from pipeline.errors import RowError, is_secret_name
from pipeline.storage import local_path, scheme_of

MAX_URI = 4096
# `name:secret@`, whatever the secret holds (keys of S3 hold slashes) but no port; or `name@`, which no slash ends.
_USERINFO = re.compile(
    r"(?P<start>:/+|^\s*//+)[^/?#@:]*:(?!\d{1,5}(?:[/?#]|\Z)).*@|(?P<slashes>:/+)[^/?#]*@", re.DOTALL
)
_URL = re.compile(r":/[^\s\"<>]*")  # from its colon on: a search for the scheme's first letter would be quadratic
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def without_secrets(uri: str) -> str:
    """`uri` unchanged where it carries no secret, also percent-encoded; else without user name, query and fragment."""
    spellings = (uri, unquote(uri)) if "%" in uri else (uri,)
    return next((bare for text in spellings if (bare := _without_secrets(text)) != text), uri)


def _without_secrets(uri: str) -> str:
    before = uri[: uri.rfind("@") + 1]  # nothing can match behind the last @
    bare = _USERINFO.sub(lambda found: found["start"] or found["slashes"], before) + uri[len(before) :]
    path, *fields = re.split(r"[?#&;]", bare)
    if any(is_secret_name(unquote_plus(field.partition("=")[0]).strip()) for field in fields):
        return path
    return uri if bare == uri else re.split(r"[?#]", bare)[0]


def without_secret_urls(text: str) -> str:
    """`text` with each url in it as `without_secrets` leaves it."""
    return _URL.sub(lambda found: without_secrets(found[0]), text)


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
    if scheme_of(uri.strip()):
        uri = uri.strip()  # a plain path may begin with a space
    _check(uri)
    scheme = scheme_of(uri)
    if scheme == "s3":
        return _object(uri)
    if scheme == "file":
        return _local(_check(str(local_path(uri))))  # decoded, it may hold what the uri did not show
    if scheme:
        raise RowError("manifest", "uri_scheme", f"{_shown(scheme)}:// is not supported: use a path, file:// or s3://")
    if Path(uri).is_absolute():
        return _local(uri)
    if scheme_of(folder) == "s3":
        return _beside(uri, folder)
    return _local(posixpath.join(str(local_path(folder)), uri))


def _check(uri: str) -> str:
    bare = without_secrets(uri)
    if bare != uri:
        raise RowError("manifest", "uri_credentials", f"the uri {_shown(bare)} carries credentials or a signature")
    if _CONTROL.search(uri):
        raise RowError("manifest", "bad_row", f"the uri {_shown(uri)!r} holds control characters")
    return uri


def _shown(uri: str) -> str:
    """As much of a uri as an error message needs: scrubbing it costs time that grows with the square of its length."""
    return uri if len(uri) <= 200 else uri[:199] + "…"


def _local(path: str) -> str:
    path = posixpath.normpath(path)
    return path[1:] if path.startswith("//") else path  # normpath keeps two leading slashes, as POSIX allows


def _object(uri: str) -> str:
    bucket, _, key = uri[len("s3://") :].partition("/")
    if uri[3:5] != "//" or not bucket or not key or key.endswith("/"):
        raise RowError("manifest", "bad_row", f"{_shown(uri)} names no object: s3://bucket/key is needed")
    if _climbs(key):
        raise RowError("manifest", "bad_row", f"{_shown(uri)} leads out of the bucket")
    return f"s3://{bucket}/{key}"


def _beside(name: str, folder: str) -> str:
    bucket, _, prefix = folder[len("s3://") :].partition("/")
    key = posixpath.normpath(posixpath.join("/", prefix, name))
    # normpath stops at the root: a path that climbs out of the bucket would silently name another object.
    if _climbs(posixpath.join(prefix or ".", name)):
        raise RowError("manifest", "bad_row", f"the path {_shown(name)} leads out of the bucket")
    return _object(f"s3://{bucket}{key}")


def _climbs(key: str) -> bool:
    return posixpath.normpath(key).split("/")[0] == ".."
