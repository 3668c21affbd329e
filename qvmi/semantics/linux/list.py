"""The kernel's doubly linked lists, walked while the kernel changes them.

References: Linux include/linux/list.h and include/linux/rculist.h: a deleted entry keeps its
``next``, its ``prev`` becomes LIST_POISON2; a new one is complete before it is linked.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final, Generic, TypeVar

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.record import Reader

__all__ = ["Implausible", "ListShape", "ListWalk", "walk_list"]

Row = TypeVar("Row")

_LINKS: Final = Struct("<QQ")
_PERSISTENT: Final = 3
"""What is wrong in so many looks in a row is the guest's own doing, not a moment of change."""
_MAX_RETRIES: Final = 1000
"""A list that changes faster than it can be followed is given up as a gap."""


class Implausible(Exception):
    """This entry cannot be what the list holds; perhaps it was freed a moment ago."""


@dataclass(slots=True)
class ListWalk(Generic[Row]):
    """This is what a walk found.

    Args:
        rows: what the visitor made of each entry, by the entry's address, in the list's order.
        gaps: what could not be followed.
        retries: how often a part was walked again.
    """

    rows: dict[int, Row] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    retries: int = 0


@dataclass(frozen=True, slots=True)
class ListShape(Generic[Row]):
    """This says how one kind of list is walked.

    Args:
        structure: its name for gaps and errors, such as ``task_struct.tasks``.
        link_offset: of the ``list_head`` in an entry, in bytes.
        read: reads an entry by its address; the first two values are its ``next`` and ``prev``.
        visit: makes a row of an entry's address and values, or raises Implausible.
        limit: more entries than the kernel can have; a longer list is a lie.
    """

    structure: str
    link_offset: int
    read: Reader
    visit: Callable[[int, tuple[Any, ...]], Row]
    limit: int


def walk_list(space: AddressSpace, head: Va, shape: ListShape[Row]) -> ListWalk[Row]:
    """This walks a list of a kernel that may be running.

    Each entry must point back to the one it was reached from. If it does not, the list was
    changed meanwhile: the walk steps back to the last entry that is still linked and goes on from
    there, which it counts. What stays wrong becomes a gap, and the walk goes on if it can.

    Args:
        space: the kernel's address space.
        head: address of the list's head.
        shape: how to walk it.

    Raises:
        WalkFailed: not even the head can be read.
    """
    links = space.unpacker(_LINKS)
    try:
        first = links(head)[0]
    except MemoryFault as fault:
        raise WalkFailed(shape.structure, f"its head cannot be read: {fault}") from fault
    return _Walker(head, shape, links).run(first)


class _Walker(Generic[Row]):
    """This is one walk in progress.

    Attributes:
        trail: links (not entries) on the way, the head first.
    """

    def __init__(self, head: int, shape: ListShape[Row], links: Reader) -> None:
        self.head = head
        self.shape = shape
        self.links = links
        self.result: ListWalk[Row] = ListWalk()
        self.trail = [head]
        self.trouble: tuple[int, int, str] | None = None
        self.repeated = 0

    def run(self, link: int) -> ListWalk[Row]:
        """This walks to the end, or to where it cannot go on."""
        head, trail, rows = self.head, self.trail, self.result.rows
        read, visit, offset = self.shape.read, self.shape.visit, self.shape.link_offset
        while link != head:
            address = link - offset
            try:
                values = read(address)
                if values[1] != trail[-1] or address in rows:
                    link = self._look_again(link, values)
                    continue
                rows[address] = visit(address, values)
            except (MemoryFault, Implausible) as error:
                link = self._look_again(link, None, str(error))
                continue
            trail.append(link)
            link = values[0]
            if len(trail) > self.shape.limit:
                self._gap(link, f"more than {self.shape.limit} entries")
                break
        return self.result

    def _look_again(self, link: int, values: tuple[Any, ...] | None, why: str = "") -> int:
        """This steps back after trouble at a link, or gets past it; it returns where to go on."""
        if values is not None:
            why = f"reached from {self.trail[-1]:#x} but points back to {values[1]:#x}"
        trouble = (self.trail[-1], link, why)
        self.repeated = self.repeated + 1 if trouble == self.trouble else 1
        self.trouble = trouble
        self.result.retries += 1
        if self.result.retries > _MAX_RETRIES:
            return self._end(link, f"gave up after {_MAX_RETRIES} retries: {why}")
        if self.repeated < _PERSISTENT:
            return self._step_back()
        if values is None:
            return self._end(link, why)
        return self._get_past(link, values, why)

    def _step_back(self) -> int:
        """This drops the rows of entries that are linked no more, and gives the next link."""
        trail, links = self.trail, self.links
        while len(trail) > 1:
            link = trail[-1]
            try:
                following, before = links(link)
                if links(before)[0] == link and links(following)[1] == link:
                    return int(following)
            except MemoryFault:
                pass
            trail.pop()
            self.result.rows.pop(link - self.shape.link_offset, None)
        return int(self.links(self.head)[0])

    def _get_past(self, link: int, values: tuple[Any, ...], why: str) -> int:
        """This accepts an entry that keeps pointing back to another one than it was reached from."""
        address = link - self.shape.link_offset
        if address in self.result.rows:
            return self._end(link, f"the list returns to an entry already seen, {why}")
        # Between the two stores of a list_add or list_del an entry points back to the last but one.
        if len(self.trail) < 2 or values[1] != self.trail[-2]:
            self._gap(link, why)
        try:
            self.result.rows[address] = self.shape.visit(address, values)
        except (MemoryFault, Implausible) as error:
            self._gap(link, str(error))
        self.trail.append(link)
        return int(values[0])

    def _end(self, link: int, why: str) -> int:
        """This ends the walk with a gap: it returns the head, where every walk ends."""
        self._gap(link, why)
        return self.head

    def _gap(self, link: int, why: str) -> None:
        entry = Va(link - self.shape.link_offset)
        self.result.gaps.append(Gap(self.shape.structure, entry, why))
