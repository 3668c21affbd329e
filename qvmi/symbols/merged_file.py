"""A symbol file that the user adds to what the guest tells of itself, and what in it contradicts that.

What the guest tells comes first: it is of what runs. A file adds what is not there.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.symbols.isf_file import IsfFile
from qvmi.symbols.isf_layout import IsfLayouts
from qvmi.symbols.layout import NearestSymbol

__all__ = ["Conflict", "Merge", "MergedFile"]

_UNKNOWN_TYPE: Final = "?"


class Conflict(msgspec.Struct, frozen=True, gc=False):
    """This is a name that means something else in the file; what was known before stays.

    Args:
        name: of the symbol, or of the type.
        known: what it means: an address, or a size and offsets.
        refused: what the file says.
    """

    name: str
    known: str
    refused: str


class Merge(msgspec.Struct, frozen=True):
    """This is what came of adding a file.

    Args:
        path: of the file.
        symbols: names that were added.
        types: types that were added.
        known: names and types that were known already, and are the same.
        unplaced: symbols that were left out, because nobody said where the file's addresses begin.
        conflicts: names and types that are known, and are something else in the file.
    """

    path: Path
    symbols: int
    types: int
    known: int
    unplaced: int
    conflicts: tuple[Conflict, ...]


@dataclass(frozen=True)
class MergedFile:
    """This is a file that was added.

    Args:
        file: that was read.
        symbols: addresses of now, by name.
        types: names of the types that are taken from it.
    """

    file: IsfFile
    symbols: Mapping[str, Va]
    types: frozenset[str]

    @cached_property
    def layouts(self) -> IsfLayouts:
        """These are the layouts of its types."""
        return IsfLayouts(self.file, str(self.file.path))

    def nearest(self, va: Va) -> NearestSymbol | None:
        """This is its symbol at or before an address, None in front of its first and behind its last."""
        addresses, names = self._by_address
        position = bisect_right(addresses, va)
        if not position or va > addresses[-1]:
            return None
        at = addresses[position - 1]
        return NearestSymbol(names[at], at, _UNKNOWN_TYPE, "")

    @cached_property
    def _by_address(self) -> tuple[Sequence[Va], Mapping[Va, str]]:
        names: dict[Va, str] = {}
        for name, va in self.symbols.items():
            names.setdefault(va, name)
        return sorted(names), names
