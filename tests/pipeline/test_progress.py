from pipeline.progress import Pace


def test_the_rate_is_that_of_the_last_two_minutes():
    pace = Pace()
    assert pace.rows_per_s(10, now=0.0) is None
    assert pace.rows_per_s(12, now=0.5) is None
    assert pace.rows_per_s(30, now=10.0) == 2.0
    for second in range(11, 1_000):
        rate = pace.rows_per_s(30 + 5 * (second - 10), now=float(second))
    assert rate == 5.0
    assert len(pace._seen) < 150
