"""Archives whose drivers end with the test."""

from __future__ import annotations

import pytest

# Before it is imported: what it asserts is told as in a test.
pytest.register_assert_rewrite("tests.scale.archive")


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Makes an archive of so many rows."""
    from tests.scale.archive import Archive

    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a machine with other work Ray's workers would wait for ever
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = []

    def make(rows: int) -> Archive:
        made.append(Archive(tmp_path / f"archive-{len(made)}", rows))
        return made[-1]

    yield make
    for one in made:
        one.end()
