import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.conditional_write import read_versioned, write_if_version
from pipeline.errors import ClusterError, UserError
from pipeline.lease import LeaseLost, hold_lease
from pipeline.storage import delete, join
from tests.pipeline import lease_process
from tests.pipeline.lease_process import TIMES
from tests.pipeline.strict_s3 import StrictS3

BRIEF = replace(TIMES, heartbeat_s=0.1, expiry_s=1.0, request_s=5.0)


class Process:
    """A process of `lease_process`; `go` makes those that share it begin together."""

    def __init__(self, output, name, folder, go=None, endpoint=None):
        self.commits = folder / "commits"
        self.go = go or folder / f"go-{name}"
        command = [sys.executable, lease_process.__file__, output, name, str(self.commits), str(self.go)]
        environment = os.environ | ({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.line() == "ready"
        if go is None:
            self.go.touch()

    def line(self):
        return self.process.stdout.readline().strip()

    def end(self, how=signal.SIGTERM):
        """Exit status, and what was printed since the last `line`."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self):
        rest = self.process.communicate()[0].strip()
        return self.process.returncode, rest


@pytest.fixture
def start(tmp_path):
    """Start a process on an output; what still runs at the end of the test is killed."""
    with ExitStack() as stack:

        def start(output, name, **options):
            started = Process(output, name, tmp_path, **options)
            stack.callback(started.process.wait)
            stack.callback(started.process.kill)
            return started

        yield start


def lease_file(output):
    found = read_versioned(join(output, "runs", "lease.json"), 20.0)
    return json.loads(found.data)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_released_lease_is_free_for_the_next_at_once(place):
    told = []
    for name in ("first", "second"):
        with hold_lease(place, name, told.append, BRIEF) as lease:
            lease.check()
            assert lease_file(place)["holder"] == name
            assert not lease_file(place)["released"]
        assert lease_file(place)["released"]
    assert told == []


def test_it_is_released_when_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), hold_lease(str(tmp_path), "one", times=BRIEF):
        _ = 1 / 0
    assert lease_file(str(tmp_path))["released"]


def test_a_second_run_is_refused_and_told_who_holds_it(place):
    told = []
    with hold_lease(place, "nightly-captions", times=BRIEF) as lease:
        with (
            pytest.raises(UserError, match=rf"nightly-captions \(process {os.getpid()} on .+begun 20"),
            hold_lease(place, "two", told.append, BRIEF),
        ):
            pytest.fail("two runs hold one output")
        lease.check()
    assert len(told) == 1
    assert "nightly-captions" in told[0]


def test_the_heartbeat_renews_without_checks(tmp_path):
    with hold_lease(str(tmp_path), "one", times=BRIEF):
        wait_for(lambda: lease_file(str(tmp_path))["renewals"] >= 3)


def test_the_lease_file_holds_no_secret(tmp_path):
    with hold_lease(str(tmp_path), "s3://user:pass-word@bucket/x?X-Amz-Signature=5ecret", times=BRIEF):
        text = Path(tmp_path, "runs", "lease.json").read_text()
    assert "pass-word" not in text
    assert "5ecret" not in text


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"token": "t"}', b"\xff\xfe"])
def test_a_damaged_lease_is_waited_out_and_taken_over(tmp_path, content):
    write_if_version(join(str(tmp_path), "runs", "lease.json"), content, None, 20.0)
    told = []
    begun = time.monotonic()
    with hold_lease(str(tmp_path), "one", told.append, BRIEF) as lease:
        assert time.monotonic() - begun >= BRIEF.expiry_s
        lease.check()
    assert "an unknown run" in told[0]


def test_a_deleted_lease_is_lost(place):
    with hold_lease(place, "one", times=BRIEF) as lease:
        delete(join(place, "runs", "lease.json"))
        with pytest.raises(LeaseLost, match="was deleted"):
            lease.check()
    assert read_versioned(join(place, "runs", "lease.json"), 20.0) is None


def test_a_lost_lease_stays_lost_and_its_new_holder_undisturbed(tmp_path):
    uri = join(str(tmp_path), "runs", "lease.json")
    with hold_lease(str(tmp_path), "one", times=BRIEF) as lease:
        theirs = lease_file(str(tmp_path)) | {"token": "another", "holder": "two", "host": "node-7"}
        Path(uri).write_text(json.dumps(theirs))
        for _ in range(2):
            with pytest.raises(LeaseLost, match=r"lost to two .* on node-7"):
                lease.check()
    assert lease_file(str(tmp_path)) == theirs


@pytest.fixture
def s3(s3_environment):
    """What stands in for S3 in this test and in the processes that it starts, buckets included."""
    server = StrictS3()
    with server.as_endpoint(s3_environment):
        yield server


def test_of_runs_that_start_together_one_holds_and_the_others_are_refused(place, s3, start, tmp_path):
    go = tmp_path / "go"
    runs = [start(place, f"run-{number}", go=go) for number in range(4)]
    go.touch()
    wait_for(lambda: sum(run.process.poll() is not None for run in runs) == 3)
    (winner,) = (run for run in runs if run.process.poll() is None)
    refused = [run.wait() for run in runs if run is not winner]
    assert [status for status, _ in refused] == [2, 2, 2]
    name = lease_file(place)["holder"]
    assert all(f"written by {name}" in printed for _, printed in refused)
    assert winner.end()[0] == 0
    assert set(winner.commits.read_text().split()) == {name}


def test_a_killed_holder_is_waited_out_and_replaced(place, start):
    dead = start(place, "dead")
    assert dead.line() == "held"
    dead.end(signal.SIGKILL)
    begun = time.monotonic()
    heir = start(place, "heir")
    assert heir.line() == "waiting"
    assert heir.line() == "held"
    assert time.monotonic() - begun >= TIMES.expiry_s
    assert lease_file(place)["holder"] == "heir"
    assert heir.end()[0] == 0


def test_a_stopped_holder_that_wakes_commits_nothing_more(place, start):
    sleeper = start(place, "sleeper")
    assert sleeper.line() == "held"
    wait_for(sleeper.commits.exists)
    sleeper.process.send_signal(signal.SIGSTOP)
    heir = start(place, "heir")
    assert heir.line() == "waiting"
    assert heir.line() == "held"
    sleeper.process.send_signal(signal.SIGCONT)
    status, printed = sleeper.wait()
    assert status == 3
    assert "lost to heir" in printed
    wait_for(lambda: "heir" in heir.commits.read_text())
    assert heir.end()[0] == 0
    names = heir.commits.read_text().split()
    assert names == sorted(names, reverse=True)  # all of sleeper's before the first of heir's


def test_a_stopped_holder_that_nobody_replaced_goes_on(tmp_path, start):
    sleeper = start(str(tmp_path / "out"), "sleeper")
    assert sleeper.line() == "held"
    sleeper.process.send_signal(signal.SIGSTOP)
    time.sleep(TIMES.expiry_s + 0.5)
    before = sleeper.commits.read_text() if sleeper.commits.exists() else ""
    sleeper.process.send_signal(signal.SIGCONT)
    wait_for(lambda: sleeper.commits.exists() and len(sleeper.commits.read_text()) > len(before))
    assert sleeper.end()[0] == 0


def test_an_outage_shorter_than_the_expiry_does_not_cost_the_lease(bucket, s3_endpoint, s3, start):
    with hold_lease(bucket, "holder", times=TIMES) as lease:
        rival = start(bucket, "rival", endpoint=s3_endpoint)  # which reaches the storage past the fault
        assert rival.line() == "waiting"
        s3.away = True
        time.sleep(1.5)
        s3.away = False
        status, printed = rival.wait()
        assert status == 2
        assert "written by holder" in printed
        lease.check()


def test_an_outage_longer_than_the_expiry_costs_nothing_where_nobody_waits(bucket, s3):
    with hold_lease(bucket, "holder", times=BRIEF) as lease:
        s3.away = True
        threading.Timer(2 * BRIEF.expiry_s, setattr, (s3, "away", False)).start()
        lease.check()
        assert not s3.away


def test_storage_that_stays_away_ends_the_run(bucket, s3):
    with hold_lease(bucket, "holder", times=replace(BRIEF, request_s=2.0, outage_s=0.5)) as lease:
        s3.away = True
        with pytest.raises(ClusterError, match=r"cannot (read|write) s3://.*lease\.json") as raised:
            lease.check()
        s3.away = False
    assert not isinstance(raised.value, LeaseLost)


def test_writes_whose_answers_are_lost_count(bucket, s3):
    s3.lose_answers = True
    with hold_lease(bucket, "holder", times=BRIEF) as lease:
        before = lease_file(bucket)["renewals"]
        lease.check()
        assert lease_file(bucket)["renewals"] > before
    assert lease_file(bucket)["released"]


def test_storage_that_ignores_conditions_is_refused(bucket, s3):
    s3.ignores_conditions = True
    with pytest.raises(UserError, match="ignores If-None-Match"), hold_lease(bucket, "holder", times=BRIEF):
        pytest.fail("nothing keeps a second run out")
