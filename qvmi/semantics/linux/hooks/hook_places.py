"""Places at which the kernel keeps the address of a function that others have hooked in."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.record import Reader

__all__ = ["MAX_CHAIN", "HookPlace", "HookPlaces"]

MAX_CHAIN: Final = 1000
"""Functions at one place; the longest chains have some dozens."""

_MAX_PLACES: Final = 100_000
"""In all; a guest that traces much has some thousand."""
_MAX_LOOKS: Final = 1 << 20
"""Places in all, those where nothing is among them: tables of a guest that lies may be full of them."""
_MAX_GAPS: Final = 1000
"""What is told; a guest with more is wrong everywhere."""


class HookPlace(NamedTuple):
    """This is one such place.

    Args:
        table: the structure that holds it.
        entry: which of its entries.
        place: where the address is kept.
        target: the address.
    """

    table: str
    entry: str
    place: int
    target: int


@dataclass(slots=True)
class HookPlaces:
    """This gathers places, up to a bound.

    Attributes:
        found: the places.
        gaps: what could not be looked at.
        looks: how many places were looked at.
    """

    found: list[HookPlace] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    looks: int = 0

    @property
    def is_full(self) -> bool:
        """This tells whether there are too many: looking on is of no use."""
        return len(self.found) > _MAX_PLACES or self.looks > _MAX_LOOKS

    def add(self, table: str, entry: str, place: int, target: int) -> None:
        """This adds a place, unless nothing is there, or there are too many."""
        if self.is_full:
            return
        self.looks += 1
        if target:
            self.found.append(HookPlace(table, entry, place, target))
        if len(self.found) > _MAX_PLACES:
            self.gaps.append(Gap(table, Va(place), f"more than {_MAX_PLACES} hooks"))
        elif self.looks > _MAX_LOOKS:
            self.gaps.append(Gap(table, Va(place), f"more than {_MAX_LOOKS} places for hooks"))

    def gap(self, table: str, at: int | None, why: str) -> None:
        """This notes what could not be looked at, unless that is too much."""
        if len(self.gaps) < _MAX_GAPS:
            self.gaps.append(Gap(table, None if at is None else Va(at), why))

    def follow(self, table: str, entry: str, first: int, read: Reader, offset: int) -> None:
        """This adds every function of a chain.

        Args:
            table: the structure.
            entry: which of its entries.
            first: the first node, by the address that `read` takes; 0 for an empty chain.
            read: reads the next node and the function of one.
            offset: of the function in it.
        """
        node, seen = first, set[int]()
        while node and not self.is_full:
            if node in seen or len(seen) >= MAX_CHAIN:
                self.gap(table, node, f"the chain of {entry or table} does not end")
                return
            seen.add(node)
            try:
                following, function = read(node)
            except MemoryFault as fault:
                self.gap(table, node, str(fault))
                return
            self.add(table, entry, node + offset, function)
            node = following
