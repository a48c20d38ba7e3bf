"""The rate of a run, its efficiency, and what its rows are judged by."""

import numpy as np
import pytest

from pipeline.benchmark.pipeline.rate import middle_rate
from pipeline.benchmark.pipeline.report import check_rows
from pipeline.benchmark.pipeline.row import Row, median_row
from pipeline.benchmark.pipeline.stub_runs import Balance
from pipeline.benchmark.pipeline.stubs import SleepingEngine, seconds_of


def test_the_rate_is_that_of_the_rows_from_a_tenth_to_nine_tenths():
    start = np.linspace(0, 1000, 10)  # slow, and so is the end
    middle = 1000 + np.arange(1, 81) / 4
    end = 2000 + np.linspace(0, 1000, 10)
    finished = np.random.default_rng(0).permutation(np.concatenate([start, middle, end]))
    assert middle_rate(finished) == pytest.approx(4.0)


@pytest.mark.parametrize("finished", [np.arange(19.0), np.full(100, 7.0)])
def test_too_few_rows_or_no_time_between_them_tell_no_rate(finished):
    with pytest.raises(ValueError, match="no rate"):
        middle_rate(finished)


def test_efficiency_is_the_rate_beside_that_of_the_slowest_stage():
    assert Row.measured("stub", 100, 9.0, 10.0, 500.0).efficiency == pytest.approx(0.9)
    assert Row.measured("curve", 100, 9.0, None, 500.0).efficiency is None


def test_repeats_become_their_medians():
    runs = [Row.measured("demo", 96, rate, alone, mb) for rate, alone, mb in ((4, 8, 3), (6, 7, 1), (5, 5, 2))]
    assert median_row(runs) == Row("demo", 96, 5, 7, 6 / 7, 2)
    assert median_row([Row.measured("curve", 96, 4, None, 3)]) == Row("curve", 96, 4, None, None, 3)


def test_the_slowest_stage_of_a_stub_run_is_known_from_its_sleep():
    assert Balance("", decode_s=0.25, answer_s=0.5).slowest_stage_rows_per_s == 16  # four decode
    assert Balance("", decode_s=0.125, answer_s=2.0).slowest_stage_rows_per_s == 8  # sixteen are being answered


def test_sleeps_differ_and_have_their_mean_in_any_stretch():
    sleeps = np.array([seconds_of(f"/stub/{number}.mp4", 2.0) for number in range(200)])
    assert sleeps.min() >= 1.0
    assert sleeps.max() <= 3.0
    assert sleeps.std() > 0.5
    means = [sleeps[begin : begin + 40].mean() for begin in range(160)]
    assert np.abs(np.array(means) - 2.0).max() < 0.1


def test_the_sleeping_engine_answers_everything_whenever_it_came(tmp_path):
    class Request:
        def __init__(self, number):
            self.prompt = f"question {number}"

    answered = []

    def requests():
        yield Request(0)
        yield Request(1)
        while len(answered) < 2:
            yield None
        yield Request(2)

    for answer in SleepingEngine(0.01, str(tmp_path / "journal")).answer(requests(), None):
        answered.append((answer.number, answer.text))
    assert sorted(answered) == [(n, f"answer to question {n}") for n in range(3)]
    assert sorted((tmp_path / "journal").read_text().splitlines()) == [f"question {n}" for n in range(3)]


def test_a_run_is_judged_by_its_efficiency_and_a_curve_by_what_grows():
    rows = [
        Row("stub, decode-bound", 320, 14.0, 16.0, 0.875, 500.0),
        Row("demo, model-bound", 96, 4.0, 5.0, 0.8, 500.0),
        Row("curve", 1_000, 40.0, None, None, 300.0),  # the start is most of it
        Row("curve", 10_000, 100.0, None, None, 500.0),
        Row("curve", 100_000, 90.0, None, None, 560.0),
    ]
    assert [(check.value, check.passed) for check in check_rows(rows)] == [
        (0.875, False),
        (0.8, True),
        (pytest.approx(1.12), False),
        (pytest.approx(1.111, abs=1e-3), True),
    ]
