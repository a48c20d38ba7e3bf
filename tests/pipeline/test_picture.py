"""Pictures of what is kept: the right tokens are bright, dark or hatched, and any text may stand beside them."""

import dataclasses
import io
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from PIL import Image
from typer.testing import CliRunner

from jobs.show import app
from pipeline.engine import TokenTrace
from pipeline.picture import _SEGMENT_COLORS, Panel, draw_tokens
from pipeline.picture_film import draw_film
from pipeline.picture_paint import Fates, fates_of, paint_frame
from pipeline.tiny.clips import write_video
from pipeline.tiny.world import make_clip
from pruning import VideoGrid

LAYERS = 8


def make_trace(frames=3, rows=2, columns=3):
    """A trace in which every token stays."""
    grid = VideoGrid(frames, rows * columns, columns=columns)
    tokens = np.arange(grid.tokens)
    return TokenTrace(
        grid=grid,
        num_layers=LAYERS,
        stage_layers=(0, 2, 4, 6),
        frame=tokens // grid.positions,
        row=tokens % grid.positions // columns,
        column=tokens % columns,
        segment=np.zeros_like(tokens),
        alive_until=np.full_like(tokens, LAYERS),
        merged_into=tokens.copy(),
    )


def make_fates(alive_until):
    """Fates without a merged token."""
    none = np.zeros(alive_until.shape, int)
    return Fates(LAYERS, alive_until, none.astype(bool), none.astype(bool), none)


def paint(alive_until, merged=False, holders=False, level=200):
    """A grey frame of 2 x 2 tokens with one token's fate at the upper left; returns the tokens' inner pixels."""
    fates = make_fates(np.full((2, 2), LAYERS))
    fates.alive_until[0, 0], fates.merged[0, 0], fates.holders[0, 0] = alive_until, merged, holders
    painted = paint_frame(np.full((9, 9, 3), level, np.uint8), fates, 40, 60)
    assert painted.shape == (40, 60, 3)
    return painted[:20, :30].astype(int), painted[20:, 30:].astype(int)


def inner(token):
    return token[3:-3, 3:-3]


def test_the_earlier_a_token_goes_the_darker_it_is():
    left = [inner(paint(layer)[0]).mean() for layer in (0, 2, 4, 6, LAYERS)]
    assert left == sorted(left)
    assert all(later - earlier > 10 for earlier, later in pairwise(left))
    assert left[-1] == inner(paint(0)[1]).mean() == 200


def test_tokens_divide_a_frame_of_any_shape_evenly():
    fates = make_fates(np.array([[0, LAYERS, LAYERS]]))
    frame = np.zeros((10, 90, 3), np.uint8)
    frame[:, 30:60], frame[:, 60:] = (250, 0, 0), (0, 250, 0)
    painted = paint_frame(frame, fates, 5, 60)
    assert painted[2, 25].tolist() == [250, 0, 0]
    assert painted[2, 45].tolist() == [0, 250, 0]


def test_merged_tokens_differ_from_dropped_and_kept_ones():
    for fate in (LAYERS, 2):
        hatched, plain = inner(paint(fate, merged=True)[0]), inner(paint(fate)[0])
        is_changed = (hatched != plain).any(axis=2)
        assert 0.1 < is_changed.mean() < 0.5
        assert (hatched[is_changed, 2] > hatched[is_changed, 0] + 30).all()  # in a colour, not in grey
        assert (hatched[~is_changed] == plain[~is_changed]).all()  # as dark as the token that holds it


def test_a_token_that_holds_others_is_outlined():
    outlined, plain = paint(LAYERS, holders=True)[0], paint(LAYERS)[0]
    assert (inner(outlined) == inner(plain)).all()
    for border in (outlined[0], outlined[-1], outlined[:, 0], outlined[:, -1]):
        assert (border == (0, 215, 255)).all()


def test_what_stays_has_a_rim_where_something_goes():
    assert paint(LAYERS, level=10)[0].max() == 10
    fates = make_fates(np.array([[0, LAYERS]]))
    painted = paint_frame(np.full((4, 4, 3), 10, np.uint8), fates, 10, 20)
    assert painted[5, 10].min() > 150
    assert painted[:, 11:].max() == 10


def read(png):
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def panel(heading="", answer="", **changes):
    return Panel(dataclasses.replace(make_trace(), **changes), heading, answer)


def test_a_picture_shows_each_panel_with_its_tokens():
    frames = np.full((3, 18, 32, 3), (10, 220, 30), np.uint8)
    trace = make_trace()
    dropped = trace.alive_until.copy()
    dropped[6:12] = 0  # all of frame 2
    kept = read(draw_tokens(frames, [panel()]))
    both = read(draw_tokens(frames, [panel(), panel(alive_until=dropped)]))

    def green(picture):
        return (picture[..., 1] - picture[..., 0] > 150).sum()

    assert kept.shape[1] == both.shape[1] == 1280
    assert both.shape[0] > kept.shape[0] > 100
    assert green(both) / green(kept) == pytest.approx(5 / 3, rel=0.02)


def test_a_merged_token_goes_with_the_one_that_holds_it():
    frames = np.full((3, 18, 32, 3), (10, 220, 30), np.uint8)
    tokens = np.arange(18)
    alive, into = np.full(18, LAYERS), tokens.copy()
    alive[12:], into[12:] = 0, tokens[6:12]  # frame 3 merges into frame 2 at the input
    gone = alive.copy()
    gone[6:12] = 4
    stays, goes = (read(draw_tokens(frames, [panel(alive_until=until, merged_into=into)])) for until in (alive, gone))
    x, y = 16 + 2 * 157 + 75, stays.shape[0] - 16 - 8 - 40
    assert stays[y - 6 : y + 6, x - 6 : x + 6, 1].max() >= 210
    assert goes[y - 6 : y + 6, x - 6 : x + 6, 1].max() < 210


def test_segments_have_bars_of_their_own_colour():
    frames = np.zeros((3, 18, 32, 3), np.uint8)
    segment = np.repeat([0, 1, 1], 6)
    picture = read(draw_tokens(frames, [panel(segment=segment)]))
    widths = []
    for color in _SEGMENT_COLORS[:2]:
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        widths.append((np.abs(picture - rgb).max(axis=2) < 8).sum())
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.1)
    assert min(widths) > 1000


@pytest.mark.parametrize(
    "text", ["$x", r"$\frac{1}{", "cost: $5 or $6?", "100 % _^{} \\", "a\nb\tc\x00d", "\ud800", "漢字 🙂", "w" * 900]
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_text_survives(text):
    frames = np.zeros((3, 9, 9, 3), np.uint8)
    plain = read(draw_tokens(frames, [panel()]))
    told = read(draw_tokens(frames, [panel(text, text)], title=text, question=text))
    assert told.shape[0] > plain.shape[0]


def test_drawing_leaves_no_trace_in_matplotlib():
    before = dict(mpl.rcParams)
    draw_tokens(np.zeros((3, 9, 9, 3), np.uint8), [panel()])
    assert dict(mpl.rcParams) == before
    assert Gcf.get_all_fig_managers() == []


def test_steps_of_several_frames_show_their_first():
    frames = np.zeros((6, 9, 16, 3), np.uint8)
    frames[::2] = (10, 220, 30)
    assert (read(draw_tokens(frames, [panel()]))[..., 1] == 220).sum() > 3 * 8000
    with pytest.raises(ValueError, match="of a video of 2 frames cannot be drawn"):
        draw_tokens(frames[:2], [panel()])


def test_tokens_without_a_rectangle_are_refused():
    trace = make_trace()
    with pytest.raises(ValueError, match="cannot be drawn"):
        draw_tokens(np.zeros((3, 9, 9, 3), np.uint8), [panel(grid=dataclasses.replace(trace.grid, columns=None))])
    with pytest.raises(ValueError, match="at least one panel"):
        draw_tokens(np.zeros((3, 9, 9, 3), np.uint8), [])


def test_a_merged_run_has_one_colour_and_its_neighbours_have_others():
    tokens = np.arange(18)
    into = np.concatenate((tokens[:6], tokens[:6], tokens[:6]))  # frames 2 and 3 live on in frame 1
    runs = [fates.run for fates in fates_of(panel(merged_into=into).trace)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] == runs[2]).all()
    assert len(np.unique(runs[0])) == 6

    def color(run):
        fates = dataclasses.replace(make_fates(np.full((1, 1), LAYERS)), holders=np.ones((1, 1), bool))
        return tuple(paint_frame(np.zeros((4, 4, 3), np.uint8), dataclasses.replace(fates, run=run), 8, 8)[0, 0])

    assert len({color(np.full((1, 1), run)) for run in range(7)}) == 7


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_film_runs_through_the_frames_with_the_panels_side_by_side(kind):
    frames = np.zeros((3, 18, 32, 3), np.uint8)
    frames[1] = (10, 220, 30)
    gone = np.full(18, LAYERS)
    gone[6:12] = 0
    film = Image.open(io.BytesIO(draw_film(frames, [panel("all", "a circle"), panel("few", alive_until=gone)], kind)))
    assert film.format == kind.upper()
    assert (film.n_frames, film.info["loop"], film.width) == (3, 0, 1280)
    green = []
    for number in range(3):
        film.seek(number)
        pixels = np.asarray(film.convert("RGB")).astype(int)
        green.append([(half[..., 1] - half[..., 0] > 120).mean() for half in np.split(pixels, 2, axis=1)])
    assert green[1][0] > 0.2
    assert green[1][1] < 0.01
    assert max(green[0] + green[2]) < 0.01


def test_a_film_takes_no_more_panels_than_fit():
    frames = np.zeros((3, 9, 9, 3), np.uint8)
    for count in (0, 7):
        with pytest.raises(ValueError, match="1 to 6 panels"):
            draw_film(frames, [panel()] * count, "gif")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(dataclasses.replace(make_clip(1_000_001), duration_s=4.0, fps=8), path)
    return path


def show(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_draws_a_real_video(video, tmp_path):
    out = tmp_path / "pictures" / "clip.png"
    result = show(video, "--question", "what is $5?", "--retention", "0.5", "--retention", "0.1", "--out", out)
    assert result.exit_code == 0, result.output
    picture = read(out.read_bytes())
    assert picture.shape[1] == 1280
    assert out.stat().st_size < 250_000


def test_the_command_takes_a_job_file_and_makes_films(video, tmp_path):
    job = tmp_path / "job.yaml"
    job.write_text(
        "task: caption\nmanifest: none\noutput: none\nbudget: {retention: 0.2}\nvideo: {frames: 4}\n"
        "generation: {max_new_tokens: 4}\n"
    )
    out = tmp_path / "clip.webp"
    result = show(video, "pruning.method=uniform", "--config", job, "--out", out)
    assert result.exit_code == 0, result.output
    assert Image.open(out).n_frames == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retention", "2"], "--retention 2 is not allowed"),
        (["--retention", "0.01", "pruning.method=fastv"], "retention"),
        (["model.source=builtin:large"], "no built-in model"),
        (["--out", "tokens.bmp"], "a name that ends in .png, .gif, .webp is needed"),
        (["modle.source=x"], "modle"),
    ],
)
def test_the_command_names_mistakes(video, arguments, message):
    result = show(video, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_command_names_a_video_that_cannot_be_read(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for name, message in (("no.mp4", "not found"), ("text.mp4", "text.mp4")):
        result = show(tmp_path / name, "--out", tmp_path / "x.png")
        assert result.exit_code == 2
        assert message in result.stderr
    assert not (tmp_path / "x.png").exists()
