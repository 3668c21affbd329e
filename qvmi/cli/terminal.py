"""Tables for people at a terminal: the one place that prints with rich."""

from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from qvmi.cli.table import Table

__all__ = ["drawn"]


def drawn(table: Table, terminal: TextIO) -> str:
    """This draws a table in the size and colours of a terminal.

    Cells are taken as they are, never as markup; one that is too wide is folded, not cut.
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
    with console.capture() as captured:
        console.print(grid)
    return captured.get()
