"""Sample pictures: written by whoever answers, read by the report."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.engine import Answer, AnswerStats, TokenTrace
from pipeline.report.found import find_run
from pipeline.report.page import make_report
from pipeline.report.samples import read_samples, write_sample
from pipeline.storage import delete, join
from pruning import VideoGrid
from tests.report.runs import answered, write_run

FRAMES, ROWS, COLUMNS, LAYERS = 12, 2, 3, 8


def make_answer(text, columns=COLUMNS):
    """An answer whose first frame was dropped at the input and whose last merged into the one before."""
    grid = VideoGrid(FRAMES, ROWS * COLUMNS, columns=columns)
    tokens = np.arange(grid.tokens)
    alive, into = np.full(grid.tokens, LAYERS), tokens.copy()
    alive[:6], alive[-6:], into[-6:] = 0, 0, tokens[-12:-6]
    trace = TokenTrace(
        grid=grid,
        num_layers=LAYERS,
        stage_layers=(0, 4),
        frame=tokens // grid.positions,
        row=tokens % grid.positions // COLUMNS,
        column=tokens % COLUMNS,
        segment=np.zeros_like(tokens),
        alive_until=alive,
        merged_into=into,
    )
    known = {field.name: 0 for field in dataclasses.fields(AnswerStats)}
    known |= {"video_tokens": grid.tokens, "retention_achieved": 0.75, "stage_layers": (0, 4), "stage_tokens": (60, 48)}
    return Answer(text, [1], "stop", AnswerStats(**known), trace=trace)


def write_one(folder, item_id, text="a red circle"):
    frames = np.full((FRAMES, 18, 32, 3), (10, 220, 30), np.uint8)
    return write_sample(folder, item_id, f"video {text}", f"what? {text}", frames, make_answer(text))


def test_a_sample_is_read_as_it_was_written(place):
    folder = join(place, "samples")
    for name in ("b", "a", "c"):
        assert write_one(folder, name)
    first, second = read_samples(folder, 2)
    assert [first.sample.item_id, second.sample.item_id] == ["a", "b"]
    sample = first.sample
    assert (sample.prompt, sample.answer, sample.frames) == ("what? a red circle", "a red circle", FRAMES)
    assert (sample.kept, sample.merged, sample.video_tokens) == (60, 6, 72)
    assert sample.shown == [0, 2, 3, 5, 6, 8, 9, 11]
    pixels = np.asarray(Image.open(io.BytesIO(first.image)).convert("RGB")).astype(int)
    plain, dropped, kept = pixels[60, 100], pixels[60 + 139, 40], pixels[60 + 139, 490]
    assert plain[1] > 200
    assert dropped.max() < 60
    assert kept[1] > 200
    delete(join(folder, "a.webp"))
    assert [picture.sample.item_id for picture in read_samples(folder, 2)] == ["b", "c"]


def test_tokens_that_lie_on_no_rectangle_have_no_picture(tmp_path):
    answer = make_answer("x", columns=None)
    assert not write_sample(str(tmp_path), "a", "v", "p", np.zeros((FRAMES, 9, 9, 3), np.uint8), answer)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="with a trace"):
        write_sample(
            str(tmp_path),
            "a",
            "v",
            "p",
            np.zeros((FRAMES, 9, 9, 3), np.uint8),
            dataclasses.replace(answer, trace=None),
        )


def test_the_report_shows_samples_beside_their_answers(tmp_path):
    folder = write_run(str(tmp_path), [answered(0)])
    for number in range(8):
        write_one(join(folder, "samples"), str(number))
    page = make_report([find_run(folder)])
    assert page.count("data:image/webp;base64,") == 6
    assert "72 video tokens, retention 0.750" in page
    assert "60 → 48 tokens by stage (layers 0, 4)" in page
    assert "60 reach the last layer, 6 merged" in page
