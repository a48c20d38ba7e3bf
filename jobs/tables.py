"""Tables as every command prints them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def named_values(title: str, lines: Iterable[tuple[str, str]]) -> Table:
    """A name and a value a line, without a head; nothing in them is markup."""
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for name, value in lines:
        table.add_row(name, Text(value))
    return table


def print_wide(table: RenderableType, width: int) -> None:
    """Print to stdout; `width` columns where that is no terminal: rich would cut at 80, and a file has no width."""
    console = Console()
    Console(width=console.width if console.is_terminal else width).print(table)
