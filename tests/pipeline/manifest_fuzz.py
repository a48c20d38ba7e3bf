"""Hostile manifests: rows of every kind that has been seen or can be imagined, each with what must become of it."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SECRET = "hunter2"
"""Stands in every credential of a fuzzed manifest, and nowhere else."""
MEGA = "x" * 1_000_000
PLANNED = None
COLUMNS = (
    "uri",
    "video_id",
    "question",
    "options",
    "start_s",
    "end_s",
    "retention",
    "frames",
    "max_new_tokens",
    "note",
)


@dataclass(frozen=True)
class FuzzedRow:
    """The cells of a row, or its whole line, and the error code that it must get; None where it must be planned."""

    content: dict[str, Any] | bytes
    code: str | None


def _cells(name: str, code: str | None, *values: Any) -> list[FuzzedRow]:
    sound = {"uri": "clip.mp4", "question": "What is this?"}
    return [FuzzedRow({**sound, name: value}, code) for value in values]


CREDENTIALS = (
    f"https://user:{SECRET}@host/a.mp4",
    f"  https://user:{SECRET}@host/a.mp4",
    f"HTTPS://{SECRET}@host/a.mp4",
    f"s3://AKIAX:ab/{SECRET}+c@bucket/a.mp4",
    f"s3://key:{SECRET}@bucket/a.mp4?versionId=3",
    f"https://user:a?b#{SECRET}@host/a.mp4",
    f"//user:{SECRET}@host/a.mp4",
    f"file://user:{SECRET}@host/a.mp4",
    f"s3://bucket/a.mp4?X-Amz-Signature={SECRET}",
    f"s3://bucket/a.mp4?versionId=1&X%2DAmz%2DSecurity%2DToken={SECRET}",
    f"https://host/a.mp4?Expires=1&amp;Signature={SECRET}",
    f"https://host/a.mp4?a=1;sig={SECRET}",
    f"https://host/a.mp4#access_token={SECRET}",
    f"clip.mp4&token={SECRET}",
    f"file:///clip.mp4%3Ftoken%3D{SECRET}",
    f"https%3A%2F%2Fuser%3A{SECRET}%40host%2Fa.mp4",
    f"https://user:{SECRET}\n@host/a.mp4",
    f"mirror/https://user:{SECRET}@host/a.mp4",
)

TEXT_ROWS = [
    *_cells(
        "uri", PLANNED, "s3://bucket/clip.mp4", "/data/clip.mp4", "file:///data/a%20b.mp4", "Où/视频 🎬.mp4", " a.mp4"
    ),
    *_cells(
        "uri", PLANNED, "../../../../etc/passwd", "/proc/self/environ", "....//....//x", "file:///../../etc/shadow"
    ),
    *_cells(
        "uri",
        PLANNED,
        "C:\\clips\\a.mp4",
        "~/a.mp4",
        "$HOME/a.mp4",
        "a;rm -rf .mp4",
        "'; DROP TABLE rows; --",
        "\u202egpj",
    ),
    *_cells("uri", "uri_missing", None, "", "  ", "\u3000"),
    *_cells(
        "uri",
        "uri_scheme",
        "gs://b/a.mp4",
        "https://host/a.mp4",
        "hdfs://n:9000/a",
        "s3a://b/a",
        "javascript://%0aalert(1)",
    ),
    *_cells(
        "uri",
        "bad_row",
        "a\x00b.mp4",
        "file:///a%00b.mp4",
        "a\nb.mp4",
        "s3://bucket",
        "s3://",
        "s3:/b/a.mp4",
        "s3://b/f/",
    ),
    *_cells("uri", "bad_row", "s3://bucket/../other/a.mp4", "s3://bucket/a/../../b.mp4"),
    *_cells("uri", "uri_credentials", *CREDENTIALS),
    *_cells("uri", "row_too_large", "y" * 5000),
    *_cells("video_id", PLANNED, "clip-7", "007", "Ω≈ç√", "../..", "a\x00b", "x" * 1024),
    *_cells("video_id", "row_too_large", "x" * 1025),
    *_cells("video_id", "uri_credentials", *CREDENTIALS[:4]),
    *_cells(
        "question",
        PLANNED,
        "مرحبا?",
        "a\x00b",
        "e\u0301" * 50,
        "\u200b?",
        "=cmd|' /C calc'!A0",
        '"quoted", ok\nand more',
        "y" * 90_000,
    ),
    *_cells("question", PLANNED, f"Is it https://user:{SECRET}@host/a.mp4 or s3://b/a?sig={SECRET}, again?"),
    *_cells("options", PLANNED, "red|blue", '["red", "blue"]', "", None, f"red|https://host/a?token={SECRET}"),
    *_cells(
        "options",
        "bad_row",
        "one",
        "a|a",
        "[1,",
        '["\\ud800", "b"]',
        '["a", null]',
        "[" * 5000,
        "|".join("abcdefghijklmnopqrstuvwxyz0"),
    ),
    *_cells("start_s", PLANNED, "0", "1.5", "", None, "-0.0", "1e3"),
    *_cells("start_s", "bad_row", "-1", "nan", "inf", "1e999", "soon", "true", "0x10", "9" * 5000),
    *_cells("end_s", "bad_row", "0", "-inf", "later", f"https://user:{SECRET}@host/"),
    *_cells("retention", "bad_row", "0", "1.5", "-0.3", "30%", "1e-999"),
    *_cells("frames", "bad_row", "0", "2.5", "-3", "1e9", "many"),
    *_cells("max_new_tokens", "bad_row", "0", "1e30", "None"),
    *_cells(
        "note",
        PLANNED,
        None,
        "",
        "\x00",
        "plain",
        "{}",
        "NULL",
        f"see s3://k:{SECRET}@b/a and https://h/a?Signature={SECRET}",
    ),
]
"""Rows that every format can hold."""

MEGA_ROWS = [
    *_cells(
        "uri", "row_too_large", MEGA, f"s3://bucket/{MEGA}", f"https://user:{SECRET}{MEGA}@host/a", "@" + ":/" * 500_000
    ),
    *_cells("question", "row_too_large", MEGA, "?" * 1_000_000, " é" * 500_000),
    *_cells("options", "row_too_large", f"{MEGA}|b"),
    *_cells("options", "bad_row", "|" * 1_000_000),
    *_cells("video_id", "row_too_large", MEGA),
    *_cells("start_s", "bad_row", MEGA),
    *_cells("note", PLANNED, MEGA, "token=" * 100_000, ":/" * 500_000),
]

JSON_LINES = (
    *(b"{broken", b"null", b"[]", b'"text"', b"\xff\xfe{}", b"\x00", b'{"uri": "a"} {"uri": "b"}'),
    *(b'{"uri": "a\xed\xa0\x80.mp4"}', b'{"uri": "\\ud800"}', b'{"uri": "a", "\\ud800": 1}', b'{"uri": "\xc3\x28"}'),
    *(b'{"uri": "a", "note": ' + deep + b"}" for deep in (b"[" * 500 + b"]" * 500, b"[" * 100_000, b"9" * 5000)),
    json.dumps({"uri": "a", **{f"key{number}": number for number in range(1200)}}).encode(),
    '{"uri": "a"}'.encode("utf-16-le"),
)
JSON_ROWS = [
    *(FuzzedRow(line, "bad_row") for line in JSON_LINES),
    FuzzedRow(b"{}", "uri_missing"),
    FuzzedRow(b'{"uri": "a", "uri": null}', "uri_missing"),
    *_cells(
        "note",
        PLANNED,
        1,
        -1.5,
        2**63,
        10**400,
        True,
        [1, "a", None],
        [],
        {},
        {"": 1},
        {"a": {"b": [{}]}},
        float("nan"),
    ),
    *_cells("note", PLANNED, [f"https://user:{SECRET}@host/"], {"link": [f"s3://b/a?sig={SECRET}"]}),
    *_cells("options", PLANNED, ["red", "blue"], [1, 2.5], []),
    *_cells("options", "bad_row", ["red"], {"a": 1}, [["a"], "b"], ["a", True]),
    *_cells("start_s", "bad_row", [1], {"s": 1}, True, -1, 10**400),
    *_cells("frames", "bad_row", 0, 2.5, [8], False),
]
CSV_ROWS = [
    FuzzedRow(line, "bad_row")
    for line in (b"a.mp4", b"a,b,c,d,e,f,g,h,i,j,k", b"\xff,,,,,,,,,", b'a.mp4,"open,,,,,,,,', b'"a"b,,,,,,,,,', b'"')
]


def fuzzed(kinds: Sequence[FuzzedRow], count: int, seed: int, huge: Sequence[FuzzedRow] = MEGA_ROWS) -> list[FuzzedRow]:
    """`count` rows in random order: each kind, a few `huge` ones, and good rows, many of them alike."""
    chance = random.Random(seed)
    rows = [*kinds, *huge]
    while len(rows) < count:
        draw = chance.random()
        if draw < 0.5:
            rows += _cells("uri", PLANNED, f"clips/{chance.randrange(count // 10)}.mp4")
        elif huge and draw > 0.998:
            rows.append(chance.choice(huge))
        else:
            rows.append(chance.choice(kinds))
    chance.shuffle(rows)
    return rows


def write_jsonl(path: Path, rows: list[FuzzedRow]) -> None:
    """One line each."""
    lines = [row.content if isinstance(row.content, bytes) else json.dumps(row.content).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def write_csv(path: Path, rows: list[FuzzedRow]) -> None:
    """COLUMNS as the header, then one record each."""
    path.write_bytes(b"".join(_csv_lines(rows)))


def _csv_lines(rows: list[FuzzedRow]) -> Iterator[bytes]:
    yield ",".join(COLUMNS).encode() + b"\n"
    for row in rows:
        if isinstance(row.content, bytes):
            yield row.content + b"\n"
        else:
            text = io.StringIO()
            csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(row.content)
            yield text.getvalue().encode()


def write_parquet(path: Path, rows: list[FuzzedRow]) -> None:
    """All columns texts."""
    columns = {name: pa.array([row.content.get(name) for row in rows], pa.string()) for name in COLUMNS}
    pq.write_table(pa.table(columns), path, row_group_size=1000)


KINDS: dict[str, tuple[list[FuzzedRow], Callable[[Path, list[FuzzedRow]], None]]] = {
    "jsonl": (TEXT_ROWS + JSON_ROWS, write_jsonl),
    "csv": (TEXT_ROWS + CSV_ROWS, write_csv),
    "parquet": (TEXT_ROWS, write_parquet),
}
"""By format: the kinds of rows that a file of it can hold, and what writes it."""
