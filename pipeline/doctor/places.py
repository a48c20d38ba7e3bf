"""Where a job reads and writes: the manifest, the output, and the clock of the storage."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from email.utils import parsedate_to_datetime

from pipeline.conditional_write import VersionConflict, write_if_version
from pipeline.doctor.check import Finding
from pipeline.errors import UserError
from pipeline.manifest import check_manifest
from pipeline.storage import check_writable, delete, filesystem_for, job_errors, join, scheme_of

_REQUEST_S = 5.0
_NO_SUCH_VERSION = '"00000000000000000000000000000000"'  # an ETag that no content has
_SKEWED_S = 60.0  # enough to confuse who reads the times of results
_REFUSED_S = 900.0  # S3 refuses requests that are signed further away from its own time


def look_at_manifest(uri: str) -> Finding:
    """Whether the manifest is there and can be read. Raises UserError or ClusterError."""
    check_manifest(uri)
    return Finding("ok", f"{uri} is readable")


def look_at_output(uri: str) -> Finding:
    """Whether files can be written to and deleted from the output, also under conditions. Raises as above."""
    check_writable(uri)
    check_creation(uri)
    check_replacement(uri)
    return Finding("ok", f"{uri} is writable, and decides conditional writes")


def check_creation(output: str) -> None:
    """Raise UserError unless a file that is there cannot be created once more (If-None-Match)."""
    probe = _probe(output)
    write_if_version(probe, b"first", None, _REQUEST_S)
    try:
        with suppress(VersionConflict):
            write_if_version(probe, b"second", None, _REQUEST_S)
            raise UserError(_ignores(output, "If-None-Match"))
    finally:
        delete(probe)


def check_replacement(output: str) -> None:
    """Raise UserError unless a version that is not there cannot be replaced (If-Match); writes nothing where so.

    A local disk has no such condition of its own.
    """
    if scheme_of(output) != "s3":
        return
    probe = _probe(output)
    with suppress(VersionConflict):
        write_if_version(probe, b"", _NO_SUCH_VERSION, _REQUEST_S)
        delete(probe)
        raise UserError(_ignores(output, "If-Match"))


def look_at_clock(uri: str) -> Finding:
    """How far this machine's clock is from that of the S3 storage behind `uri`. Raises ClusterError."""
    filesystem, _ = filesystem_for(uri)
    with job_errors(uri, "reach"):
        endpoint = filesystem.s3.meta.endpoint_url
        started = time.time()
        date = _date_header(endpoint)
        ours = (started + time.time()) / 2
    if date is None:
        return Finding("skipped", "the storage does not tell its time")
    # The header has whole seconds.
    skew_s = ours - parsedate_to_datetime(date).timestamp() - 0.5
    told = f"this machine's clock is {abs(skew_s):,.0f} s {'ahead of' if skew_s > 0 else 'behind'} the storage's"
    advice = "synchronise the clock (chrony or systemd-timesyncd)"
    if abs(skew_s) > _REFUSED_S:
        return Finding("fail", f"{told}: it refuses requests", advice)
    return Finding("warn", told, advice) if abs(skew_s) > _SKEWED_S else Finding("ok", "as the storage's")


def _date_header(endpoint: str) -> str | None:
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  # the endpoint of the S3 client
    try:
        with urllib.request.urlopen(request, timeout=_REQUEST_S) as answer:  # noqa: S310
            return answer.headers["Date"]
    except urllib.error.HTTPError as error:  # an answer too: nobody has signed the request
        return error.headers["Date"]


def _probe(output: str) -> str:
    return join(output, f".write-test-{uuid.uuid4().hex[:8]}")


def _ignores(output: str, header: str) -> str:
    return (
        f"the storage of {output} ignores {header}, so two runs could mix in this output: use a storage that knows "
        "conditional writes, as Amazon S3 does"
    )
