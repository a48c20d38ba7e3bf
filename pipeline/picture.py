"""A picture of what pruning kept: `python -m pipeline.picture VIDEO --prompt TEXT --retention 0.5 0.1 --out FILE.png`.

Asks a model about a video, unpruned and at each retention, and draws the frames with their token grid: tokens that
went are dark and pale, the earlier the darker; tokens that merged into those of an earlier frame are hatched.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.engine import Answer, Request, TokenTrace, VideoLLM
from pipeline.errors import RowError, one_line
from pipeline.picture_page import FONT, LINE, MARGIN, WIDTH, Page, lines_of
from pipeline.picture_paint import Fates, paint_frame
from pipeline.video.decode import decode_frames
from pipeline.video.sampling import Sampling
from pruning import PruningConfig, method_names

_FRAMES_A_ROW = 8
_GAP, _BAR, _SAMPLE = 8, 15, 24  # pixels: between things, of the bar above a frame, of a sample in the legend
_SEGMENT_COLORS = ("#e69f00", "#8fce5a", "#cc79a7", "#f0e442", "#d98b5f", "#b8a1e8", "#b0b0b0", "#e8a3a3")
_NO_SEGMENT_COLOR = "#d5d5d5"


@dataclass(frozen=True)
class Panel:
    """One run over the video: what became of its tokens, a line above its frames and one below them."""

    trace: TokenTrace
    heading: str
    answer: str = ""


def draw_tokens(frames: np.ndarray, panels: Sequence[Panel], title: str = "", question: str = "") -> bytes:
    """A PNG of the frames uint8 [T, H, W, 3], in order, once for each panel, under a legend.

    Where the model joins several frames into one step, the first of them is shown. Raises ValueError
    where there is nothing to draw, or tokens that lie on no rectangle.
    """
    if not panels:
        raise ValueError("a picture needs at least one panel")
    for panel in panels:
        grid = panel.trace.grid
        if grid.columns is None or grid.positions % grid.columns or not 0 < grid.frames <= len(frames):
            raise ValueError(f"{grid} of a video of {len(frames)} frames cannot be drawn")
    legend = list(_legend([panel.trace for panel in panels]))
    text = [title, question, *(line for panel in panels for line in (panel.heading, panel.answer))]
    rows = sum(-(-panel.trace.grid.frames // _FRAMES_A_ROW) for panel in panels)
    page = Page(
        2 * MARGIN
        + LINE * sum(len(lines_of(line)) for line in text)
        + (_SAMPLE + _GAP) * (1 + max(sample.line for sample in legend))
        + rows * (_frame_size(frames)[0] + _BAR + _GAP)
        + _GAP * (1 + len(panels))
    )
    page.text(title, weight="bold", size=FONT + 3)
    page.text(question)
    _draw_legend(page, legend)
    for panel in panels:
        page.space(_GAP)
        page.text(panel.heading, weight="bold")
        _draw_frames(page, frames, panel.trace)
        page.text(panel.answer)
    return page.png()


def _frame_size(frames: np.ndarray) -> tuple[int, int]:
    """Height and width of a drawn frame, in pixels."""
    width = (WIDTH - 2 * MARGIN - (_FRAMES_A_ROW - 1) * _GAP) // _FRAMES_A_ROW
    return max(1, round(width * frames.shape[1] / frames.shape[2])), width


def _draw_frames(page: Page, frames: np.ndarray, trace: TokenTrace) -> None:
    """Rows of frames, each under a bar that numbers it and names and colours its segment."""
    height, width = _frame_size(frames)
    grid = trace.grid
    for number, fates in enumerate(_fates(trace)):
        place = number % _FRAMES_A_ROW
        if number and not place:
            page.space(height + _BAR + _GAP)
        x = MARGIN + place * (width + _GAP)
        segment = int(trace.segment[number * grid.positions])
        color, name = _NO_SEGMENT_COLOR, f"frame {number + 1}"
        if segment >= 0:
            color, name = _SEGMENT_COLORS[segment % len(_SEGMENT_COLORS)], f"{name} · segment {segment + 1}"
        page.bar(x, page.y, width, _BAR, color)
        page.label(x + 4, page.y + _BAR // 2, name)
        frame = frames[number * len(frames) // grid.frames]
        page.image(x, page.y + _BAR, paint_frame(frame, fates, height, width))
    page.space(height + _BAR + _GAP)


def _fates(trace: TokenTrace) -> Iterator[Fates]:
    """What became of the tokens of each frame."""
    grid = trace.grid
    merged = trace.merged_into != np.arange(grid.tokens)
    holders = np.isin(np.arange(grid.tokens), trace.merged_into[merged])
    parts = (trace.alive_until[trace.merged_into], merged, holders)
    by_frame = (part.reshape(grid.frames, -1, grid.columns or 1) for part in parts)
    for alive_until, is_merged, is_holder in zip(*by_frame, strict=True):
        yield Fates(trace.num_layers, alive_until, is_merged, is_holder)


@dataclass(frozen=True)
class _Sample:
    """One entry of the legend: its line, where it starts, what it shows and says."""

    line: int
    x: int
    fates: Fates
    label: str


def _legend(traces: Sequence[TokenTrace]) -> Iterator[_Sample]:
    """A sample for each fate that occurs in the traces."""
    num_layers = traces[0].num_layers
    fates = [fate for trace in traces for fate in _fates(trace)]
    layers = sorted({int(layer) for fate in fates for layer in np.unique(fate.alive_until)} - {num_layers})
    entries = [("kept to the last layer (white rim)", num_layers, False, False)]
    entries += [(f"gone at layer {layer}" if layer else "gone at the input", layer, False, False) for layer in layers]
    if any(fate.merged.any() for fate in fates):
        entries.append(("merged into an earlier frame, dark once gone there", num_layers, True, False))
        entries.append(("holds merged tokens", num_layers, False, True))
    line, x = 0, MARGIN
    for label, layer, is_merged, is_holder in entries:
        width = _SAMPLE + 3 * _GAP + round(6.2 * len(label))
        if x + width > WIDTH:
            line, x = line + 1, MARGIN
        one = (np.full((1, 1), value) for value in (layer, is_merged, is_holder))
        yield _Sample(line, x, Fates(num_layers, *one), label)
        x += width


def _draw_legend(page: Page, legend: Sequence[_Sample]) -> None:
    """Samples painted as in the frames, with what they mean."""
    page.space(_GAP)
    grey = np.full((1, 1, 3), 190, dtype=np.uint8)
    for sample in legend:
        y = page.y + sample.line * (_SAMPLE + _GAP)
        page.image(sample.x, y, paint_frame(grey, sample.fates, _SAMPLE, _SAMPLE))
        page.label(sample.x + _SAMPLE + _GAP, y + _SAMPLE // 2, sample.label)
    page.space((legend[-1].line + 1) * (_SAMPLE + _GAP))


def picture_of(
    llm: VideoLLM, video: Path, prompt: str, method: str, retentions: Sequence[float], reference: str = ""
) -> bytes:
    """Ask about a video, unpruned and at each retention, and draw a panel of each; `reference` is the right answer.

    Raises RowError where the video cannot be read, and ValueError for what the engine refuses.
    """
    frames = decode_frames(video, Sampling(llm.info.default_frames, "uniform")).frames
    [encoded] = llm.encode([frames])
    request = Request(encoded, prompt, is_traced=True)
    answers = llm.answer([request], PruningConfig(method="none"))
    answers += llm.answer([replace(request, retention=r) for r in retentions], PruningConfig(method=method))
    title = f"{video.name}: what {method} keeps of {answers[0].stats.video_tokens} video tokens in {llm.info.name}"
    question = f"Question: {prompt}" + (f"   Right answer: {reference}" if reference else "")
    return draw_tokens(frames, [_panel(answer) for answer in answers], title, question)


def _panel(answer: Answer) -> Panel:
    stats = answer.stats
    heading = "Unpruned"
    if stats.retention_achieved < 1:
        counts = " → ".join(str(count) for count in stats.stage_tokens)
        layers = ", ".join(str(layer) for layer in stats.stage_layers)
        heading = (
            f"Retention {stats.retention_achieved:.3f}: {counts} tokens from layers {layers} on, "
            f"{stats.flops_ratio:.0%} of the unpruned FLOPs"
        )
    return Panel(answer.trace, heading, f"Answer: {answer.text}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--retention", type=float, nargs="+", default=[0.3], help="a panel for each")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--method", choices=method_names(), default="hieravid")
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--reference", default="", help="the right answer, printed beside the question")
    args = parser.parse_args(arguments)
    try:
        llm = VideoLLM.load(args.model)
        picture = picture_of(llm, args.video, args.prompt, args.method, args.retention, args.reference)
    except RowError as error:
        parser.error(f"{args.video}: {error.message}")
    except ValueError as error:
        parser.error(one_line(str(error)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_bytes(picture)


if __name__ == "__main__":
    main()
