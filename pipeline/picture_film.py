"""An animated picture of what pruning kept: the frames one after another, the retentions side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.picture import BAR, GAP, SAMPLE, Panel, check_grid, draw_frame, draw_legend, legend_of
from pipeline.picture_page import FONT, LINE, MARGIN, WIDTH, Page, lines_of
from pipeline.picture_paint import fates_of

Film = Literal["gif", "webp"]
_WIDEST, _MOST_PANELS = 480, 6  # pixels; side by side on the page
_FRAME_MS, _LAST_MS = 700, 1800  # how long a frame is shown, and the last one


def draw_film(frames: np.ndarray, panels: Sequence[Panel], kind: Film, title: str = "", question: str = "") -> bytes:
    """A GIF or WebP that runs through the frames uint8 [T, H, W, 3] for ever, each panel in a column of its own.

    Raises ValueError where there is nothing to draw, more panels than fit side by side, or tokens that lie on no
    rectangle.
    """
    if not 0 < len(panels) <= _MOST_PANELS:
        raise ValueError(f"a film shows 1 to {_MOST_PANELS} panels side by side, not {len(panels)}: draw a PNG instead")
    for panel in panels:
        check_grid(panel.trace, frames)
    fates = [list(fates_of(panel.trace)) for panel in panels]
    count = panels[0].trace.grid.frames
    steps = [_step(frames, panels, [one[number] for one in fates], number, title, question) for number in range(count)]
    out = io.BytesIO()
    first, *rest = (Image.fromarray(step) for step in steps)
    times = [_FRAME_MS] * (count - 1) + [_LAST_MS]
    how = {"quality": 85, "method": 3} if kind == "webp" else {"optimize": False, "disposal": 1}
    first.save(out, kind.upper(), save_all=True, append_images=rest, duration=times, loop=0, **how)
    return out.getvalue()


def _step(
    frames: np.ndarray, panels: Sequence[Panel], fates: Sequence, number: int, title: str, question: str
) -> np.ndarray:
    """One picture of the film, uint8 [height, WIDTH, 3]: all panels at frame `number`."""
    width = min(_WIDEST, (WIDTH - 2 * MARGIN - (len(panels) - 1) * GAP) // len(panels))
    height = max(1, round(width * frames.shape[1] / frames.shape[2]))
    headings = [lines_of(panel.heading, width) for panel in panels]
    answers = [lines_of(panel.answer, width) for panel in panels]
    legend = list(legend_of([panel.trace for panel in panels]))
    above, below = (max(map(len, texts)) for texts in (headings, answers))
    page = Page(
        2 * MARGIN
        + LINE * (len(lines_of(title)) + len(lines_of(question)) + above + below)
        + (SAMPLE + GAP) * (1 + max(sample.line for sample in legend))
        + BAR
        + height
        + 3 * GAP
    )
    page.text(title, weight="bold", size=FONT + 3)
    page.text(question)
    draw_legend(page, legend)
    page.space(GAP)
    top = page.y
    for place, (panel, fate) in enumerate(zip(panels, fates, strict=True)):
        x = MARGIN + place * (width + GAP)
        page.y = top
        for line in headings[place]:
            page.label(x, page.y + LINE // 2, line, "bold")
            page.space(LINE)
        page.y = top + LINE * above
        draw_frame(page, x, frames, panel.trace, number, fate, (height, width))
        page.space(BAR + height + GAP)
        for line in answers[place]:
            page.label(x, page.y + LINE // 2, line)
            page.space(LINE)
    return page.pixels()
