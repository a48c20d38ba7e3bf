"""A picture of what pruning kept of a video, unpruned and at several retentions.

Frames are drawn in order with their token grid: tokens that went are dark and pale, the earlier the darker; tokens that
merged into one of an earlier frame are hatched in the colour of its outline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.engine import Answer, Request, TokenTrace, VideoLLM
from pipeline.picture_page import FONT, LINE, MARGIN, WIDTH, Page, lines_of
from pipeline.picture_paint import Fates, fates_of, paint_frame
from pruning import PruningConfig

_FRAMES_A_ROW = 8
GAP, BAR, SAMPLE = 8, 15, 24  # pixels: between things, of the bar above a frame, of a sample in the legend
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
        check_grid(panel.trace, frames)
    legend = list(legend_of([panel.trace for panel in panels]))
    text = [title, question, *(line for panel in panels for line in (panel.heading, panel.answer))]
    rows = sum(-(-panel.trace.grid.frames // _FRAMES_A_ROW) for panel in panels)
    page = Page(
        2 * MARGIN
        + LINE * sum(len(lines_of(line)) for line in text)
        + (SAMPLE + GAP) * (1 + max(sample.line for sample in legend))
        + rows * (_frame_size(frames)[0] + BAR + GAP)
        + GAP * (1 + len(panels))
    )
    page.text(title, weight="bold", size=FONT + 3)
    page.text(question)
    draw_legend(page, legend)
    for panel in panels:
        page.space(GAP)
        page.text(panel.heading, weight="bold")
        _draw_frames(page, frames, panel.trace)
        page.text(panel.answer)
    return page.png()


def check_grid(trace: TokenTrace, frames: np.ndarray) -> None:
    """Raise ValueError for tokens that lie on no rectangle, or in more frames than there are."""
    grid = trace.grid
    if grid.columns is None or grid.positions % grid.columns or not 0 < grid.frames <= len(frames):
        raise ValueError(f"{grid} of a video of {len(frames)} frames cannot be drawn")


def _frame_size(frames: np.ndarray) -> tuple[int, int]:
    """Height and width of a drawn frame, in pixels."""
    width = (WIDTH - 2 * MARGIN - (_FRAMES_A_ROW - 1) * GAP) // _FRAMES_A_ROW
    return max(1, round(width * frames.shape[1] / frames.shape[2])), width


def _draw_frames(page: Page, frames: np.ndarray, trace: TokenTrace) -> None:
    """Rows of frames, each under a bar that numbers it and names and colours its segment."""
    height, width = _frame_size(frames)
    for number, fates in enumerate(fates_of(trace)):
        place = number % _FRAMES_A_ROW
        if number and not place:
            page.space(height + BAR + GAP)
        draw_frame(page, MARGIN + place * (width + GAP), frames, trace, number, fates, (height, width))
    page.space(height + BAR + GAP)


def draw_frame(
    page: Page, x: int, frames: np.ndarray, trace: TokenTrace, number: int, fates: Fates, size: tuple[int, int]
) -> None:
    """Frame `number` of the token grid at `x`, `size` high and wide, under a bar that names it and its segment."""
    height, width = size
    segment = int(trace.segment[number * trace.grid.positions])
    color, name = _NO_SEGMENT_COLOR, f"frame {number + 1}"
    if segment >= 0:
        color, name = _SEGMENT_COLORS[segment % len(_SEGMENT_COLORS)], f"{name} · segment {segment + 1}"
    page.bar(x, page.y, width, BAR, color)
    page.label(x + 4, page.y + BAR // 2, name)
    frame = frames[number * len(frames) // trace.grid.frames]
    page.image(x, page.y + BAR, paint_frame(frame, fates, height, width))


@dataclass(frozen=True)
class Sample:
    """One entry of the legend: its line, where it starts, what it shows and says."""

    line: int
    x: int
    fates: Fates
    label: str


def legend_of(traces: Sequence[TokenTrace]) -> Iterator[Sample]:
    """A sample for each fate that occurs in the traces."""
    num_layers = traces[0].num_layers
    fates = [fate for trace in traces for fate in fates_of(trace)]
    layers = sorted({int(layer) for fate in fates for layer in np.unique(fate.alive_until)} - {num_layers})
    entries = [("kept to the last layer (white rim)", num_layers, False, False)]
    entries += [(f"gone at layer {layer}" if layer else "gone at the input", layer, False, False) for layer in layers]
    if any(fate.merged.any() for fate in fates):
        entries.append(("merged into the token outlined in its colour", num_layers, True, False))
        entries.append(("holds merged tokens of its colour", num_layers, False, True))
    line, x = 0, MARGIN
    for label, layer, is_merged, is_holder in entries:
        width = SAMPLE + 3 * GAP + round(6.2 * len(label))
        if x + width > WIDTH:
            line, x = line + 1, MARGIN
        one = (np.full((1, 1), value) for value in (layer, is_merged, is_holder, 0))
        yield Sample(line, x, Fates(num_layers, *one), label)
        x += width


def draw_legend(page: Page, legend: Sequence[Sample]) -> None:
    """Samples painted as in the frames, with what they mean."""
    page.space(GAP)
    grey = np.full((1, 1, 3), 190, dtype=np.uint8)
    for sample in legend:
        y = page.y + sample.line * (SAMPLE + GAP)
        page.image(sample.x, y, paint_frame(grey, sample.fates, SAMPLE, SAMPLE))
        page.label(sample.x + SAMPLE + GAP, y + SAMPLE // 2, sample.label)
    page.space((legend[-1].line + 1) * (SAMPLE + GAP))


def ask_panels(
    llm: VideoLLM, frames: np.ndarray, question: str, pruning: PruningConfig, retentions: Sequence[float]
) -> list[Panel]:
    """Ask about frames uint8 [T, H, W, 3], unpruned and at each retention. Raises ValueError for what is refused."""
    [encoded] = llm.encode([frames])
    request = Request(encoded, question, is_traced=True)
    answers = llm.answer([request], PruningConfig(method="none"))
    answers += llm.answer([replace(request, retention=r) for r in retentions], pruning)
    return [_panel(answer) for answer in answers]


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
