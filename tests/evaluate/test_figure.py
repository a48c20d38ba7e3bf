"""The figure is a picture that shows every method."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from pipeline.evaluate.figure import draw_comparison
from pipeline.evaluate.origin import Origin

ORIGIN = Origin("2026-01-01", "2 CPU cores", "abc1234", "python -m jobs.evaluate compare")


def row(method: str, comparison: str, flops: float, share: float | None) -> dict:
    status = "unreachable" if share is None else "ok"
    return {
        "method": method,
        "comparison": comparison,
        "flops_ratio": flops,
        "accuracy_share": share,
        "accuracy": share and 0.9 * share,
        "status": status,
    }


def drawn(tmp_path: Path, rows: list[dict]) -> np.ndarray:
    path = tmp_path / "figure.png"
    draw_comparison(rows, "hieravid", path, ORIGIN)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    return imread(path)[..., :3]


def has_colour(picture: np.ndarray, wanted: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture * 255 - wanted).max(-1) < 8).sum() > 30)


def test_each_method_has_a_line_and_ours_stands_out(tmp_path: Path) -> None:
    rows = [row("none", "mean", 1.0, 1.0)]
    rows += [row(m, "mean", f, s) for m, s in (("hieravid", 0.99), ("uniform", 0.9)) for f in (0.5, 0.3, 0.1)]
    rows.append(row("fastv", "mean", 0.0, None))
    picture = drawn(tmp_path, rows)
    assert picture.shape[0] > 500
    assert picture.shape[1] > 900
    assert has_colour(picture, (0xD5, 0x5E, 0x00))
    assert has_colour(picture, (0x00, 0x72, 0xB2))
    assert not has_colour(picture, (0xE6, 0x9F, 0x00)), "a method without a reachable cell has no line"


def test_equal_flops_are_shown_where_they_were_compared(tmp_path: Path) -> None:
    rows = [row("none", c, 1.0, 1.0) for c in ("mean", "flops")]
    rows += [row("hieravid", "flops", f, 0.98) for f in (0.5, 0.1)]
    rows += [row("uniform", "mean", f, 0.9) for f in (0.5, 0.1)]
    assert not has_colour(drawn(tmp_path, rows), (0x00, 0x72, 0xB2))
