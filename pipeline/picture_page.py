"""A sheet of text, bars and images, filled from the top and written as a PNG."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

WIDTH, MARGIN = 1280, 16  # pixels, as all lengths here
LINE = 19  # a line of text
FONT, SMALL_FONT = 9.5, 8.5  # points
_DPI = 100
_LETTERS_A_LINE = 165
_INK = "#111111"


def lines_of(text: str, width: int = WIDTH) -> list[str]:
    """A text in lines that fit `width`; what cannot be printed becomes U+FFFD, line breaks a space."""
    printable = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in text)
    return textwrap.wrap(printable, max(1, _LETTERS_A_LINE * width // WIDTH))


class Page:
    """A white sheet `WIDTH` wide; `y` is how far it is filled."""

    def __init__(self, height: int) -> None:
        """A figure of its own, unknown to pyplot."""
        self._figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)
        self._height = height
        self.y = MARGIN

    def space(self, height: int) -> None:
        """Go down."""
        self.y += height

    def text(self, text: str, weight: str = "normal", size: float = FONT) -> None:
        """Lines from the left margin on."""
        for line in lines_of(text):
            self.label(MARGIN, self.y + LINE // 2, line, weight, size)
            self.y += LINE

    def label(self, x: int, y: int, text: str, weight: str = "normal", size: float = SMALL_FONT) -> None:
        """One line of text from `x` on, its middle at `y`."""
        place = (x / WIDTH, 1 - y / self._height)
        # taken literally: a dollar sign starts no formula
        self._figure.text(*place, text, va="center", size=size, weight=weight, color=_INK, parse_math=False)

    def image(self, x: int, y: int, pixels: np.ndarray) -> None:
        """An image uint8 [height, width, 3], pixel by pixel, with its upper left corner at (x, y)."""
        self._figure.figimage(pixels, x, self._height - y - pixels.shape[0], origin="upper")

    def bar(self, x: int, y: int, width: int, height: int, color: str) -> None:
        """A filled rectangle with its upper left corner at (x, y)."""
        corner = (x / WIDTH, 1 - (y + height) / self._height)
        size = (width / WIDTH, height / self._height)
        self._figure.add_artist(Rectangle(corner, *size, facecolor=color, edgecolor="none"))

    def pixels(self) -> np.ndarray:
        """The sheet as uint8 [height, WIDTH, 3]."""
        self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba())[..., :3]

    def png(self) -> bytes:
        """The sheet in 256 colours, spread over all that occur: small things keep theirs at a third of the bytes."""
        pixels = Image.fromarray(self.pixels())
        palette = pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
        out = io.BytesIO()
        palette.save(out, "PNG", optimize=True)
        return out.getvalue()
