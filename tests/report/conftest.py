"""One Chromium for the whole folder; tests that need it are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pipeline.conftest import bucket, place, s3_endpoint, s3_environment  # noqa: F401  # fixtures
from tests.report.browser import Browser, find_browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A running browser."""
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine (Debian's package is called chromium)")
    started = Browser(path, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()
