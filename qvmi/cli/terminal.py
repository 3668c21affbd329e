"""Tables for people at a terminal: the one place that prints with rich."""

from typing import Final, TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from qvmi.cli.table import Table

__all__ = ["drawn"]

_UNLIMITED: Final = 1 << 20  # columns; the longest cell is a path or a name of some kilobytes


def drawn(table: Table, terminal: TextIO) -> str:
    """This draws a table in the colours of a terminal, and prose in its size.

    Cells are taken as they are, never as markup. Nothing is cut: lines that are too long are left
    to the terminal.
    """
    console = Console(file=terminal, highlight=False, markup=False, emoji=False)
    grid = RichTable(
        box=box.SIMPLE_HEAD if any(table.titles) else None,
        show_header=any(table.titles),
        show_edge=False,
        pad_edge=False,
    )
    for title, right in zip(table.titles, table.rights, strict=True):
        grid.add_column(
            Text(title, style="bold"), justify="right" if right else "left", overflow="fold"
        )
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    if not table.prose:
        unlimited = console.options.update(width=_UNLIMITED)
        console.width = max(console.width, console.measure(grid, options=unlimited).maximum)
    with console.capture() as captured:
        console.print(grid)
    return captured.get()
