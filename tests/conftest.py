"""`--soak-record FILE`: how each soak test went, where and on which code, as JSON that a later start goes on from.

FILE maps test ids to `outcome`, `seconds`, `finished_at` (UTC), `commit` and `machine`, and where the
test says so what was `injected` in the place of the real thing. It is rewritten after each test. A test
that passed on the same commit is not run again; a changed checkout counts as no commit's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

_OPTION = "--soak-record"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(_OPTION, metavar="FILE", type=Path, help="keep a JSON record and go on from it")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption(_OPTION)
    if file is not None:
        config.pluginmanager.register(SoakRecord(file.absolute(), config.rootpath), "soak-record")


class SoakRecord:
    """Reads the record of earlier starts at `file`, and writes what the tests of this one did to it."""

    def __init__(self, file: Path, root: Path) -> None:
        self._file = file
        self._tests: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        self._commit = commit_of(root, file)
        self._machine = machine()
        self._reports: defaultdict[str, list[pytest.TestReport]] = defaultdict(list)

    def pytest_report_header(self) -> str:
        return f"soak record: {self._file}, commit {self._commit}"

    @pytest.hookimpl(trylast=True)  # after -m and -k: what they leave out is not counted as done
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        done = [item for item in items if self._has_passed(item.nodeid)]
        items[:] = [item for item in items if item not in done]
        if done:
            config.hook.pytest_deselected(items=done)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports[report.nodeid].append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        reports = self._reports.pop(nodeid)
        outcomes = [report.outcome for report in reports]
        self._tests[nodeid] = {
            "outcome": next((outcome for outcome in ("failed", "skipped") if outcome in outcomes), "passed"),
            "seconds": round(sum(report.duration for report in reports), 1),
            "finished_at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "commit": self._commit,
            "machine": self._machine,
            **{name: value for name, value in reports[-1].user_properties if name == "injected"},
        }
        temporary = self._file.with_name(f".{self._file.name}.tmp")
        temporary.write_text(json.dumps(self._tests, indent=1, sort_keys=True) + "\n")
        temporary.replace(self._file)

    def _has_passed(self, nodeid: str) -> bool:
        earlier = self._tests.get(nodeid, {})
        is_known = self._commit is not None and not self._commit.endswith("-dirty")
        return is_known and (earlier.get("outcome"), earlier.get("commit")) == ("passed", self._commit)


def commit_of(root: Path, record: Path) -> str | None:
    """The commit that is checked out at `root`, with `-dirty` where a file but `record` was changed; None outside."""
    told = _git(root, "describe", "--always")
    if told is None:
        return None
    inside = record.is_relative_to(root)
    but_the_record = [f":(exclude){record.relative_to(root)}"] if inside else []
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *but_the_record)
    return f"{told}-dirty" if changed else told


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> str:
    """The name of the processor, and how many cores of it there are for us."""
    told = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{told[1] if told else os.uname().machine}, {len(os.sched_getaffinity(0))} cores"
