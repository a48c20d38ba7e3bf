"""What a page is made of: sections of sentences, charts, tables and samples. Plain data, which the template shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from markupsafe import Markup

Kind = Literal["number", "text", "foreign", "code"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table. `share` (0 to 1) draws a bar behind the number, in the colour of the run `run`.

    A `foreign` text came with the data: it is set apart, whatever its script and direction.
    """

    text: str
    kind: Kind = "number"
    share: float | None = None
    run: int = 0
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table: its first column names the rows. `kinds` say how the columns are aligned."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """How each column is set: as its first row is."""
        return tuple(cell.kind for cell in self.rows[0]) if self.rows else ("text",) * len(self.columns)


@dataclass(frozen=True)
class Chart:
    """A chart as SVG, its title, and in words what is to be seen."""

    title: str
    svg: Markup
    description: str


@dataclass(frozen=True)
class Shot:
    """A sample: an image as a data: uri, what is on it, and the texts that stand beside it."""

    image: str
    alt: str
    heading: str
    question: str
    answer: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own."""

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    shots: tuple[Shot, ...] = ()


@dataclass(frozen=True)
class Tile:
    """One of the numbers at the top."""

    label: str
    values: tuple[str, ...]
    note: str = ""
    mood: Literal["", "good", "bad"] = ""


@dataclass(frozen=True)
class RunLine:
    """What the head of the page says about a run."""

    letter: str
    name: str
    run_id: str
    place: str
    verdict: str
    mood: Literal["", "good", "bad"]
    facts: tuple[tuple[str, str], ...]
    config: str = ""
    others: tuple[str, ...] = field(default_factory=tuple)
