"""Charts as inline SVG whose colours and letters are the page's: they follow dark, light and print.

Each is as wide as a phone; wider pages set several side by side.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET  # reads what matplotlib just wrote
from collections.abc import Callable, Sequence

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report import forms

_WIDTH, _HEIGHT = 380, 210  # CSS pixels on a phone
_FONT = 11
# Colours that no chart has, each in the place of a variable of the page's style sheet.
_INK, _MUTED, _LINE, _BAD = "#010101", "#020202", "#030303", "#060606"
_RUNS = ("#040404", "#050505")
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _LINE: "--line", _BAD: "--bad", _RUNS[0]: "--run-a"}
_VARIABLES[_RUNS[1]] = "--run-b"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": _FONT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "text.color": _INK,
    "lines.linewidth": 1.8,
    "text.parse_math": False,
}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"

Points = Sequence[tuple[float, float]]


def throughput(runs: Sequence[Points], failed: Sequence[Points], width_s: float) -> Markup:
    """Rows a minute over time. Points are (seconds since the run's first row, rows a minute), `width_s` apart."""

    def draw(axes: Axes) -> None:
        for number, points in enumerate(runs):
            if not points:
                continue
            times, heights = _outline(points, width_s)
            axes.plot(times, heights, color=_RUNS[number], solid_joinstyle="miter")
            if len(runs) == 1:
                _area(axes, times, heights, _RUNS[number], 0.14)
        for points in failed:
            if any(height for _, height in points):
                times, heights = _outline(points, width_s)
                _area(axes, times, heights, _BAD, 0.85)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 1.5, 2, 3, 6, 10], min_n_ticks=2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: forms.axis_seconds(value)))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: forms.axis_number(value)))

    return _svg(draw)


def _area(axes: Axes, x: Sequence[float], y: Sequence[float], color: str, alpha: float) -> None:
    """What lies between a line and the axis. As a patch: other fills would refer to a part of the SVG by its id."""
    axes.fill([*x, x[-1], x[0]], [*y, 0, 0], color=color, alpha=alpha, linewidth=0)


def _outline(points: Points, width_s: float) -> tuple[list[float], list[float]]:
    """The corners of a step line that is at each point's height for `width_s`."""
    times = [edge for time, _ in points for edge in (time, time + width_s)]
    return times, [height for _, height in points for _ in range(2)]


def layers(runs: Sequence[Sequence[tuple[float, float, float, float]]], num_layers: Sequence[float]) -> Markup:
    """The share of a video's tokens that is left over the layers: (layer, median, low, high) where a stage begins."""

    def draw(axes: Axes) -> None:
        for number, (stages, end) in enumerate(zip(runs, num_layers, strict=True)):
            if not stages:
                continue
            starts = [stage[0] for stage in stages]
            edges = [edge for start, stop in zip(starts, [*starts[1:], end], strict=True) for edge in (start, stop)]
            median, low, high = ([stage[part] for stage in stages for _ in range(2)] for part in (1, 2, 3))
            axes.plot(edges, median, color=_RUNS[number], solid_joinstyle="miter")
            axes.fill([*edges, *edges[::-1]], [*low, *high[::-1]], color=_RUNS[number], alpha=0.18, linewidth=0)
            if len(runs) == 1:
                for start, share, *_ in stages:
                    axes.annotate(f"{share:.0%}", (start, share), (2, 4), textcoords="offset points", color=_INK)
        axes.set_ylim(0, 1.12)
        axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("layer of the decoder")

    return _svg(draw)


def histogram(runs: Sequence[Points], step: float) -> Markup:
    """How many rows took how long. Points are (milliseconds where a bin begins, share of rows); it ends at × `step`."""

    def draw(axes: Axes) -> None:
        for number, points in enumerate(runs):
            if not points:
                continue
            edges = [edge for start, _ in points for edge in (start, start * step)]
            heights = [share for _, share in points for _ in range(2)]
            _area(axes, edges, heights, _RUNS[number], 0.25)
            axes.plot(edges, heights, color=_RUNS[number], linewidth=1.2, solid_joinstyle="miter")
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        starts = [start for points in runs for start, _ in points]
        ticks = _round_times(min(starts), max(starts) * step)
        axes.set_xticks(ticks, [forms.axis_seconds(tick / 1e3) for tick in ticks])
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.4g} %"))

    return _svg(draw)


def _round_times(first: float, last: float) -> list[float]:
    """At most six times in milliseconds that read well, from `first` to `last`."""
    known = [1e-3, 1e-2, 0.1, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700]
    known += [seconds * 1e3 for seconds in (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200)]
    known += [seconds * 1e3 for seconds in (1800, 3600, 7200, 14400, 28800, 57600, 86400)]
    known += [days * 864e5 for days in (2, 5, 10, 30, 100)]
    within = [time for time in known if first <= time <= last]
    return within[:: -(-len(within) // 6)] if within else [first]


def _svg(draw: Callable[[Axes], None]) -> Markup:
    with rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        out = io.BytesIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Markup(_inline(out.getvalue()))  # noqa: S704  # holds numbers and our own words only


def _inline(svg: bytes) -> str:
    """An SVG file as a part of a page: no ids, which would stand there twice, colours and letters from the page."""
    root = ET.fromstring(svg)  # noqa: S314  # as above
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}defs"):
                parent.remove(child)
    for element in root.iter():
        for name in ("id", "clip-path", _LINK):
            element.attrib.pop(name, None)
    root.attrib.pop("width")
    root.attrib.pop("height")
    root.set("aria-hidden", "true")
    ET.register_namespace("", _SVG)
    text = ET.tostring(root, encoding="unicode")
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return re.sub(r"\s*\n\s*", "", re.sub(r" font-family: [^;]*;", "", text))
