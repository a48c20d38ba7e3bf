import pytest

from pipeline.tiny.policies import compare


def rows(answers: str, reference: str = "aaaabb") -> list[dict]:
    return [
        {"video_id": f"clip-{n // 2}", "prompt": f"q{n}", "reference": right, "answer": said, "decode_cpu_ms": 5.0}
        for n, (said, right) in enumerate(zip(answers, reference, strict=True))
    ]


def test_the_difference_is_paired_over_the_same_questions():
    found = compare(rows("aaaabb"), rows("aaabbb"))
    assert (found.questions, found.clips, found.first) == (6, 3, 1.0)
    assert found.second == pytest.approx(5 / 6)
    assert found.difference.value == pytest.approx(-1 / 6)
    assert found.difference.low < -1 / 6 < found.difference.high <= 0
    assert found.first_decode_cpu_ms == pytest.approx(10.0)


def test_an_error_row_is_a_wrong_answer():
    failed = rows("aaaabb")
    failed[0] |= {"answer": None, "decode_cpu_ms": None}
    assert compare(rows("aaaabb"), failed).second == pytest.approx(5 / 6)


def test_jobs_over_other_questions_cannot_be_compared():
    with pytest.raises(ValueError, match="same questions"):
        compare(rows("aaaabb"), rows("aaaabb", "aaaaba"))
    with pytest.raises(ValueError, match="same questions"):
        compare([], [])
