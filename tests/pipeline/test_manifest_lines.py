import io

import pytest

from pipeline.manifest_lines import Lines, LineTooLongError
from pipeline.manifest_text import open_csv


def taken(lines):
    """Every line, "too long" for one that is."""
    found = []
    while True:
        try:
            found.append(next(lines))
        except LineTooLongError:
            found.append("too long")
        except StopIteration:
            return found


@pytest.mark.parametrize("file", [io.BytesIO(b"ab\n" + b"c" * 25 + b"\nde"), io.StringIO("ab\n" + "c" * 25 + "\nde")])
def test_a_line_that_is_too_long_is_passed_over(file):
    lines = taken(Lines(file, longest=10))
    assert lines == ([b"ab\n", "too long", b"de"] if isinstance(file, io.BytesIO) else ["ab\n", "too long", "de"])


def test_lines_can_be_gone_back_to_also_those_that_were_too_long():
    lines = Lines(io.StringIO("a\nb\n" + "c" * 25 + "\nd\n"), longest=10)
    assert next(lines) == "a\n"
    lines.keep()
    taken(lines)
    assert (lines.taken, lines.first) == (3, "b\n")
    lines.go_back()
    assert taken(lines) == ["too long", "d\n"]


def records(path, *lines):
    path.write_text("\n".join(["uri,note", *lines, ""]))
    source = open_csv(path, str(path))
    return [
        batch.problems[place].message if place in batch.problems else row["uri"]
        for batch in source.batches()
        for place, row in enumerate(batch.rows.to_pylist())
    ]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ('b,"open', "row 2 is not CSV: unexpected end of data"),
        ('"open', "row 2 is not CSV: unexpected end of data"),
        ('b,"x"y', "row 2 is not CSV: ',' expected after '\"'"),
    ],
)
def test_a_quote_left_open_swallows_no_other_row(tmp_path, broken, told):
    assert records(tmp_path / "m.csv", "a,1", broken, "c,3", "d,4") == ["a", told, "c", "d"]


def test_two_quotes_left_open_do_not_close_each_other(tmp_path):
    found = records(tmp_path / "m.csv", '"', "b,2", '"', "d,4")
    assert found[0] == "row 1 has 1 cells over 3 lines, the header has 2"
    assert (found[1], found[3], len(found)) == ("b", "d", 4)
