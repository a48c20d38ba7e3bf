"""A real S3-protocol server on the loopback interface, and small helpers that several tests share."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from pipeline.config import JobConfig
from pipeline.config_load import load_config
from pipeline.storage import filesystem_for

NOW = datetime(2026, 11, 22, 3, 15, tzinfo=UTC)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    return monkeypatch


@pytest.fixture
def bucket(s3_endpoint: str, s3_environment: pytest.MonkeyPatch) -> str:
    """The uri of a new, empty bucket."""
    s3_environment.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    uri = f"s3://archive-{uuid.uuid4().hex[:10]}"
    filesystem, path = filesystem_for(uri)
    filesystem.mkdir(path)
    return uri


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder to write to: once on the local disk, once on S3."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows (or raw lines) as a JSONL manifest and return its path."""

    def write(*rows: dict[str, Any] | str, name: str = "manifest.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., JobConfig]:
    """A job config made of overrides, its output in the test's own folder unless told otherwise."""

    def make(manifest: str, *overrides: str, task: str = "caption") -> JobConfig:
        return load_config(None, [f"output={tmp_path / 'out'}", f"task={task}", f"manifest={manifest}", *overrides])

    return make
