"""Tables for people at a terminal: the one place that prints with rich."""

from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from qvmi.cli.printing.table import Table, plain_lines

__all__ = ["drawn"]


def drawn(table: Table, terminal: TextIO) -> str:
    """This draws a table in the colours of a terminal, and prose in its size.

    Cells are taken as they are, never as markup. Nothing is cut: prose is folded, other lines that
    are too long are left to the terminal.
    """
    console = Console(file=terminal, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        if table.prose:
            console.print(_grid(table))
        else:
            console.print(_lines(table), soft_wrap=True)
    return captured.get()


def _lines(table: Table) -> Text:
    """This is a table in one piece: rich's own tables take milliseconds for each row."""
    text = Text("\n".join(plain_lines(table)))
    if any(table.titles):
        text.stylize("bold", 0, text.plain.find("\n") if table.rows else None)
    return text


def _grid(table: Table) -> RichTable:
    """This is a table whose long cells rich folds."""
    titled = any(table.titles)
    grid = RichTable(
        box=box.SIMPLE_HEAD if titled else None,
        show_header=titled,
        show_edge=False,
        pad_edge=False,
    )
    for title, right in zip(table.titles, table.rights, strict=True):
        grid.add_column(
            Text(title, style="bold"), justify="right" if right else "left", overflow="fold"
        )
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
