"""The Ray cluster that jobs are sent to: whether it answers, and whether it runs what this machine runs."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.doctor.check import Finding
from pipeline.errors import ClusterError, UserError, one_line

_CONNECT_S = 3.0
_ATTEMPTS = 3
_ASK_S = 12.0  # most of it is for importing Ray on a busy machine
_GCS_PORT = 6379
_ASK = Path(__file__).with_name("ask_cluster.py")


def look_at_cluster(address: str | None) -> Finding:
    """Whether the cluster at `address` answers with our versions of Ray and Python.

    `address` is `host:port`, `auto`, or the `http://host:port` of a job server; None: a local cluster is started.
    Raises UserError for an address of another form, ClusterError where nothing answers there.
    """
    ours = metadata.version("ray")
    if not address or address == "local":
        return Finding("ok", f"Ray {ours}; no cluster is named: each job starts a local one")
    if address.startswith(("http://", "https://")):
        check_reachable(address)
        return _compare(address, ours, _ask_job_server(address), None)
    if address.startswith("ray://"):
        raise UserError(f"{address} is of Ray Client: name the job server (http://host:8265) or host:{_GCS_PORT}")
    if address != "auto":
        check_reachable(address)
    known = _ask_head(address)
    return _compare(known["address"], ours, known["ray"], known["python"])


def check_reachable(address: str) -> None:
    """Raise ClusterError unless something listens at `host:port` or at the host and port of a url, in 3 s."""
    place = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = place.hostname, place.port or {"http": 80, "https": 443}.get(place.scheme)
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"{address}: an address is written host:port or http://host:port")
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterError(f"nothing answers at {address} ({error.strerror or error})") from error


def check_ray_address(address: str) -> None:
    """Raise ClusterError unless something listens at the address of a job's cluster; a head that starts gets seconds.

    Where nothing does, Ray itself would wait for minutes, then end the process.
    """
    if address in ("auto", "local"):
        return
    for _ in range(_ATTEMPTS - 1):
        with suppress(ClusterError):
            return check_reachable(address)
        time.sleep(1.0)
    check_reachable(address)


def _compare(address: str, ours: str, theirs: str, python: str | None) -> Finding:
    mine = platform.python_version()
    differing = []
    if theirs != ours:
        differing.append(f"Ray {theirs} there and {ours} here")
    if python is not None and python != mine:
        differing.append(f"Python {python} there and {mine} here")
    if differing:
        advice = "install the same versions on both sides: Ray refuses to connect otherwise"
        return Finding("fail", f"{address} answers, but there is {' and '.join(differing)}", advice)
    told = f" and Python {python}" if python is not None else ""
    return Finding("ok", f"{address} answers, with Ray {theirs}{told} as here")


def _ask_job_server(address: str) -> str:
    """The Ray version that a job server tells."""
    request = urllib.request.Request(f"{address.rstrip('/')}/api/version")  # noqa: S310  # http or https, as was checked
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_CONNECT_S) as answer:  # noqa: S310
            return str(json.load(answer)["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise UserError(f"{address} asks for a token (HTTP {error.code}): set RAY_AUTH_TOKEN") from error
        raise UserError(f"{address} is no Ray job server (HTTP {error.code})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{address} is no Ray job server: it does not tell its version") from error
    except OSError as error:
        raise ClusterError(f"{address} does not answer ({getattr(error, 'reason', error)})") from error


def _ask_head(address: str) -> dict[str, str]:
    """What the head node at `host:port`, or the one that `auto` finds, tells of itself."""
    try:
        asked = subprocess.run(
            [sys.executable, "-P", str(_ASK), address], capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{address} does not answer as a Ray cluster does") from error
    if asked.returncode != 0:
        [*_, last] = asked.stderr.strip().splitlines() or ["no reason given"]
        reason = re.sub(r"^[\w.]+: ", "", last)  # of a traceback
        raise ClusterError(f"no Ray cluster at {address}: {one_line(reason, 160)}")
    return dict(json.loads(asked.stdout.strip().splitlines()[-1]))
