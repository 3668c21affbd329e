"""What a plugin answers with, as plain Python values that outlive the guest."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from qvmi.semantics.guest_os import Listing

__all__ = [
    "MAX_FILES_SIZE",
    "MAX_ROWS",
    "RenderedTable",
    "Rendering",
    "Value",
    "VolatilityFile",
    "VolatilityRow",
    "VolatilityTable",
]

MAX_ROWS: Final = 1 << 20
"""Rows of one answer. A kernel has some 200,000 symbols, which is the longest list there is."""

MAX_FILES_SIZE: Final = 1 << 30
"""Bytes of all files that one plugin makes; they are held in memory."""

Value = int | float | str | bytes | bool | datetime | None
"""A cell; None where Volatility says that there is none, or that it could not be read."""


class VolatilityRow(msgspec.Struct, frozen=True, gc=False):
    """This is one row of a plugin's answer.

    Args:
        depth: how deep it stands in the tree; 0 for the top.
        values: its cells by the names of their columns, in their order. Text is the guest's word.
    """

    depth: int
    values: dict[str, Value]

    def __getitem__(self, column: str) -> Value:
        return self.values[column]


class VolatilityFile(msgspec.Struct, frozen=True, gc=False):
    """This is a file that a plugin made, as with its option ``dump``; it was written nowhere.

    Args:
        name: as the plugin calls it, without any folder.
        data: its content.
    """

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class VolatilityTable(Listing[VolatilityRow]):
    """This is what a plugin answered.

    What it failed at is a gap, as is every warning and error that it logged.

    Args:
        plugin: its full name, such as ``linux.pslist.PsList``.
        columns: their names, in order.
        files: that it made.
    """

    plugin: str
    columns: tuple[str, ...]
    files: tuple[VolatilityFile, ...]


@dataclass(frozen=True, slots=True)
class Rendering:
    """This says how a renderer of Volatility's is to write an answer.

    Args:
        renderer: its name, such as ``quick``, ``pretty``, ``csv`` or ``json``.
        escape: makes a text of the guest's harmless for where it is shown.
        filters: rows to show, as ``vol --filters`` takes them.
        hidden_columns: beginnings of the names of columns to leave out, as ``vol --hide-columns``.
    """

    renderer: str
    escape: Callable[[str], str]
    filters: tuple[str, ...] = ()
    hidden_columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RenderedTable(VolatilityTable):
    """This is an answer with what a renderer wrote of it.

    Args:
        text: harmless lines.
    """

    text: str
