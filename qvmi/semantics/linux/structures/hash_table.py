"""The kernel's hash tables of what is linked by a node inside it, walked while the kernel changes them.

References: Linux include/linux/list.h (``hlist_head``), include/linux/list_nulls.h (the end of a chain
is an odd number that tells which chain it is: an entry may move to another one while it is read),
include/linux/rhashtable.h (bit 0 of a head is a lock, and nodes do not point back).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, Generic, TypeVar

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible, ListWalk

__all__ = ["HashTable", "TableWalk", "UsedChains"]

Row = TypeVar("Row")
Other = TypeVar("Other")

_MAX_HEADS: Final = 1 << 20
"""Twice what the kernel gives its largest table of sockets unless it is told to."""
_PAGE: Final = 4096
_RETRIES: Final = 3
_MAX_GAPS: Final = 1000
"""Tables with so many wrong chains are none."""
_NODE: Final = Struct("<QQ")
_POINTER: Final = Struct("<Q")
_NULLS_BASE: Final = 1 << 29
"""``LISTENING_NULLS_BASE``, which the ends of some tables are counted from."""


@dataclass(frozen=True, slots=True)
class HashTable(Generic[Row]):
    """This says how one table is walked.

    Args:
        structure: its name for gaps, such as ``tcp_hashinfo.ehash``.
        heads: where the first chain's head is.
        count: of chains.
        stride: bytes from one head to the next.
        link_offset: of the node in an entry, in bytes.
        visit: makes a row of an entry's address, or raises Implausible or MemoryFault.
        points_back: whether a node's second word is where the pointer to it is.
        is_numbered: whether the end of a chain says which it is.
    """

    structure: str
    heads: int
    count: int
    stride: int
    link_offset: int
    visit: Callable[[int], Row]
    points_back: bool = True
    is_numbered: bool = False

    def visited_by(self, visit: Callable[[int], Other]) -> "HashTable[Other]":
        """This is the same table, of whose entries something else is wanted."""
        return HashTable(
            self.structure,
            self.heads,
            self.count,
            self.stride,
            self.link_offset,
            visit,
            points_back=self.points_back,
            is_numbered=self.is_numbered,
        )


class UsedChains:
    """This tells which chains of one table have entries; of the same heads again it knows that already."""

    def __init__(self) -> None:
        self._heads = b""
        self._numbers: tuple[int, ...] = ()

    def of(self, table: HashTable[Any], heads: bytes) -> Sequence[int]:
        """These are their numbers.

        Args:
            table: the table.
            heads: the bytes of its heads.
        """
        if heads != self._heads:
            ends = 1 if table.is_numbered else 0
            firsts = (
                _POINTER.unpack_from(heads, number * table.stride)[0]
                for number in range(table.count)
            )
            used = (number for number, first in enumerate(firsts) if first and not first & ends)
            self._heads, self._numbers = heads, tuple(used)
        return self._numbers


class TableWalk(Generic[Row]):
    """This walks tables, all of them for one question.

    Args:
        space: the kernel's address space.
        effort: what all of it may cost; Spent comes through.

    Attributes:
        result: what was found, by the entry's address.
        table_of: where each was found.
    """

    def __init__(self, space: AddressSpace, effort: Effort) -> None:
        self._space = space
        self._effort = effort
        self._read_node = space.unpacker(_NODE)
        self._read_pointer = space.unpacker(_POINTER)
        self.result: ListWalk[Row] = ListWalk()
        self.table_of: dict[int, HashTable[Row]] = {}

    def add(self, table: HashTable[Row], used: "UsedChains | None" = None) -> None:
        """This walks one table; what cannot be followed is a gap.

        Args:
            table: the table.
            used: remembers the chains of this table; None for one that is walked once.

        Raises:
            Spent: all this costs too much.
        """
        if len(self.result.gaps) > _MAX_GAPS:
            return
        try:
            data = self._heads_of(table)
        except (MemoryFault, Implausible) as error:
            self.gap(table.structure, table.heads, str(error))
            return
        for number in (used or UsedChains()).of(table, data):
            self._add_chain(table, number)
            if len(self.result.gaps) > _MAX_GAPS:
                self.gap(table.structure, table.heads, "given up: so much of it is wrong")
                return

    def _heads_of(self, table: HashTable[Row]) -> bytes:
        if table.count > _MAX_HEADS:
            raise Implausible(f"a table of {table.count} chains")
        size = table.count * table.stride
        self._effort.spend(1 + size // _PAGE)
        return self._space.read(Va(table.heads), size)

    def gap(self, structure: str, at: int, why: str) -> None:
        """This notes what could not be looked at."""
        self.result.gaps.append(Gap(structure, Va(at), why))

    def still_has(self, entry: int) -> bool:
        """This tells whether what points to an entry that was found does so still, if it can tell.

        Raises:
            MemoryFault: it cannot be read.
        """
        table = self.table_of[entry]
        if not table.points_back:
            return True
        link = entry + table.link_offset
        behind = self._read_node(link)[1]
        return bool(behind) and self._read_pointer(behind)[0] == link

    def _add_chain(self, table: HashTable[Row], number: int) -> None:
        """This adds what one chain holds: of the look that met no trouble, or of the last one."""
        for left in range(_RETRIES - 1, -1, -1):
            found: dict[int, Row] = {}
            trouble = self._follow(table, number, found)
            if trouble is None:
                break
            self.result.retries += 1
            if not left:
                self.result.gaps.append(trouble)
        self.result.rows.update(found)
        self.table_of.update(dict.fromkeys(found, table))

    def _follow(self, table: HashTable[Row], number: int, found: dict[int, Row]) -> Gap | None:
        """This follows a chain to its end.

        Returns:
            Why it could not, None where it could.
        """
        behind = table.heads + number * table.stride
        link = behind
        try:
            link = self._read_pointer(behind)[0] & (-1 if table.points_back else ~1)
            while link and not link & 1:
                behind, link = link, self._add_entry(table, behind, link, found)
        except (MemoryFault, Implausible) as error:
            return Gap(table.structure, Va(link), str(error))
        end = link >> 1 if link else None
        if table.is_numbered and end not in {number, number + _NULLS_BASE}:
            return Gap(
                table.structure, Va(behind), f"chain {number} ends as another one: {link:#x}"
            )
        return None

    def _add_entry(
        self, table: HashTable[Row], behind: int, link: int, found: dict[int, Row]
    ) -> int:
        """This adds the entry that a link is in, and gives the next link."""
        self._effort.spend(1)
        following, back = self._read_node(link)
        entry = link - table.link_offset
        if entry in found:
            raise Implausible("the chain returns to an entry already seen")
        if table.points_back and back != behind:
            raise Implausible(f"points back to {back:#x} (reached from {behind:#x})")
        found[entry] = table.visit(entry)
        return int(following)
