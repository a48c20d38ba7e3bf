"""Many rows: an interrupted job goes on without doing anything twice, and a row costs no more among many."""

import signal

import pytest

from pipeline.benchmark.pipeline.rate import finished_s, middle_rate


def interrupt_and_resume(job, files, number):
    """Send a driver `number` when there are so many result files, start another; what was seen of it."""
    first = job.start()
    job.wait_until_committed(first, files)
    first.send_signal(number)
    first.wait()
    committed, done = job.committed(), job.done()
    assert 0 < len(committed) < job.rows

    seen = job.finish(job.start())
    again = job.done() - done
    assert not committed.keys() & again.keys()
    job.check()
    return seen


def test_a_job_of_two_thousand_rows_that_is_stopped_goes_on(archive):
    interrupt_and_resume(archive(2_000), files=8, number=signal.SIGTERM)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_rows_cost_what_ten_thousand_do(archive):
    small, large = archive(10_000), archive(100_000)
    seen = [job.finish(job.start()) for job in (small, large)]
    rates = [middle_rate(finished_s(str(job.output))) for job in (small, large)]
    large.check()
    assert seen[1].peak_mb <= 1.1 * seen[0].peak_mb
    assert 1 / rates[1] <= 1.15 / rates[0]
    assert seen[1].start_s - seen[1].plan_s <= 0.02 * seen[1].took_s, "planning"


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_job_of_a_hundred_thousand_rows_whose_driver_was_killed_goes_on(archive):
    seen = interrupt_and_resume(archive(100_000), files=100, number=signal.SIGKILL)
    assert seen.answer_s <= 60, "until the first new row, the wait for the dead driver's lease included"
