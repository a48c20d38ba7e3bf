import json
import subprocess

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import pytest

def test_passes(record_property):
    record_property("injected", "a plain file for a full disk")
    record_property("other", 1)

def test_fails():
    assert (0, "{mark}") == (0, "")

@pytest.fixture
def broken():
    yield
    raise OSError("gone")

def test_breaks_off_behind_itself(broken):
    pass

def test_is_skipped():
    pytest.skip("no GPU")
"""


@pytest.fixture
def checkout(pytester, request, monkeypatch):
    """A folder of tests with the recording conftest; git knows it."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeconftest((request.config.rootpath / "tests" / "conftest.py").read_text())
    pytester.makepyfile(test_it=TESTS.format(mark="x"))
    git(pytester.path, "init", "-q")
    commit(pytester.path)
    return pytester


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True)


def commit(folder):
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "state")


def soak(pytester, *given):
    result = pytester.runpytest("-p", "no:cacheprovider", "--soak-record", "soak.json", *given)
    return result.parseoutcomes(), json.loads((pytester.path / "soak.json").read_text())


def test_each_test_is_recorded_with_what_it_took_and_where_it_ran(checkout):
    _, record = soak(checkout)
    assert {test: told["outcome"] for test, told in record.items()} == {
        "test_it.py::test_passes": "passed",
        "test_it.py::test_fails": "failed",
        "test_it.py::test_breaks_off_behind_itself": "failed",
        "test_it.py::test_is_skipped": "skipped",
    }
    passed = record["test_it.py::test_passes"]
    assert passed.keys() == {"outcome", "seconds", "finished_at", "commit", "machine", "injected"}
    assert passed["injected"] == "a plain file for a full disk"
    assert passed["machine"].endswith(" cores")
    assert passed["finished_at"].endswith("Z")


def test_a_later_start_goes_on_with_what_has_not_passed(checkout):
    soak(checkout, "-k", "passes")
    outcomes, record = soak(checkout)
    assert (outcomes["deselected"], outcomes.get("passed")) == (1, 1)  # the other one that passed breaks off later
    assert len(record) == 4


def test_what_passed_on_other_code_is_run_again(checkout):
    _, before = soak(checkout)
    checkout.makepyfile(test_it=TESTS.format(mark=""))
    outcomes, changed = soak(checkout)
    assert outcomes["passed"] == 3
    assert changed["test_it.py::test_fails"]["commit"] == before["test_it.py::test_fails"]["commit"] + "-dirty"
    outcomes, _ = soak(checkout)
    assert outcomes["passed"] == 3, "a changed checkout is no state to go on from"
    commit(checkout.path)
    outcomes, after = soak(checkout)
    assert outcomes["passed"] == 3
    assert not after["test_it.py::test_fails"]["commit"].endswith("-dirty")


def test_a_record_that_is_committed_itself_changes_no_code(checkout):
    soak(checkout)
    commit(checkout.path)
    soak(checkout)
    outcomes, record = soak(checkout)
    assert outcomes["deselected"] == 1
    assert not record["test_it.py::test_passes"]["commit"].endswith("-dirty")


def test_outside_a_checkout_everything_is_run_again(pytester, request):
    pytester.makeconftest((request.config.rootpath / "tests" / "conftest.py").read_text())
    pytester.makepyfile(test_it="def test_passes(): pass")
    for _ in range(2):
        outcomes, record = soak(pytester)
        assert outcomes == {"passed": 1}
        assert record["test_it.py::test_passes"]["commit"] is None


def test_without_the_option_nothing_is_recorded(checkout):
    checkout.runpytest("-p", "no:cacheprovider", "-k", "passes").assert_outcomes(passed=1, deselected=3)
    assert not list(checkout.path.glob("*.json"))
