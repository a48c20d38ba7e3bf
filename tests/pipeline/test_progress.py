from jobs.console import Display
from pipeline.progress import Pace, Progress


def test_rates_are_those_of_the_last_two_minutes():
    pace = Pace()
    assert pace.rates((10, 0.0), now=0.0) is None
    assert pace.rates((12, 0.1), now=0.5) is None
    assert pace.rates((30, 5.0), now=10.0) == (2.0, 0.5)
    for second in range(11, 1_000):
        rates = pace.rates((30 + 5 * (second - 10), 5.0), now=float(second))
    assert rates == (5.0, 0.0)
    assert len(pace._seen) < 150


def test_a_line_of_progress_tells_how_busy_the_workers_are_and_what_limits_them():
    now = Progress("answer", 5, 0, 90, "", 0.5, 170.0, decoders_busy=0.834, answerers_busy=0.41, limited_by="decoding")
    told = "about 3 min left, decoders 83 % busy, answerers 41 %, limited by decoding, 0 s"
    assert Display()._line(now).endswith(told)
