"""Tables of text that was made harmless, aligned for a pipe."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from qvmi.cli.printing.escape import escaped, width

__all__ = ["Column", "Table", "plain_lines", "table_of"]

Row = TypeVar("Row")
_GAP: Final = "  "


class Column(msgspec.Struct, Generic[Row], frozen=True):
    """This is one column: its title, and what it shows of a row.

    Args:
        title: in capitals; empty where the table needs none.
        text: what is shown, which is escaped later.
        right: whether it is aligned to the right, as numbers are.
    """

    title: str
    text: Callable[[Row], str]
    right: bool = False


class Table(msgspec.Struct, frozen=True):
    """This is a table whose cells are escaped.

    Args:
        titles: of the columns.
        rights: for each column whether it is aligned to the right.
        rows: the cells, row by row.
        prose: whether long cells may be folded to fit a terminal; what is copied from one, such
            as an address, should stay in one piece.
    """

    titles: tuple[str, ...]
    rights: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: bool = False


def table_of(columns: Sequence[Column[Row]], rows: Iterable[Row], *, prose: bool = False) -> Table:
    """This fills the columns with rows; see :class:`Table` for ``prose``."""
    return Table(
        tuple(column.title for column in columns),
        tuple(column.right for column in columns),
        tuple(tuple(escaped(column.text(row)) for column in columns) for row in rows),
        prose,
    )


def plain_lines(table: Table) -> Iterator[str]:
    """This yields the table as lines; the titles come first where there are any."""
    lines = (table.titles, *table.rows) if any(table.titles) else table.rows
    sizes = [[width(cell) for cell in line] for line in lines]
    widest = [max(column, default=0) for column in zip(*sizes, strict=True)]
    for line, widths in zip(lines, sizes, strict=True):
        cells = []
        for cell, size, most, right in zip(line, widths, widest, table.rights, strict=True):
            space = " " * (most - size)
            cells.append(space + cell if right else cell + space)
        yield _GAP.join(cells).rstrip()
