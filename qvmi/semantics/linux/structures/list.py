"""The kernel's doubly linked lists, walked while the kernel changes them.

References: Linux include/linux/list.h and include/linux/rculist.h: a deleted entry keeps its
``next``, its ``prev`` becomes LIST_POISON2; a new one is complete before it is linked.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Any, Final, Generic, TypeVar

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.record import Reader

__all__ = ["Implausible", "ListShape", "ListWalk", "walk_list"]

Row = TypeVar("Row")

_LINKS: Final = Struct("<QQ")
_PERSISTENT: Final = 3
"""What is wrong in so many looks is the guest's own doing, not a moment of change."""
_MAX_RETRIES: Final = 1000
"""A list that changes faster than it can be followed is given up as a gap."""
_RESTLESS: Final = "the list changes too fast"


class Implausible(Exception):
    """This entry cannot be what the list holds; perhaps it was freed a moment ago.

    It is between a walk and those who read entries for it, and leaves the walk as a gap.
    """


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
        read: reads an entry by its address; its ``next`` and ``prev`` are among the values.
        visit: makes a row of an entry's address and values, or raises Implausible.
        limit: more entries than the kernel can have; a longer list is a lie.
        links_at: which of the values is ``next``; ``prev`` is the one behind it.
    """

    structure: str
    link_offset: int
    read: Reader
    visit: Callable[[Va, tuple[Any, ...]], Row]
    limit: int
    links_at: int = 0


def walk_list(space: AddressSpace, head: Va, shape: ListShape[Row]) -> ListWalk[Row]:
    """This walks a list of a kernel that may be running.

    Each entry must point back to the one it was reached from, and the head to the last one. If it
    does not, the list was changed meanwhile: the walk steps back to the last entry that is still
    linked and goes on from there, which it counts. What stays wrong becomes a gap. Where the walk
    cannot go on, it goes backwards from the head for the entries that it did not reach.

    Args:
        space: the kernel's address space.
        head: address of the list's head.
        shape: how to walk it.

    Raises:
        WalkFailed: the head cannot be read.
    """
    return _Walker(head, shape, space.unpacker(_LINKS)).run()


class _Walker(Generic[Row]):
    """This is one walk in progress.

    Attributes:
        trail: links (not entries) on the way, the head first.
        dropped: how many entries were left again in stepping back.
        ended: whether the walk is over.
        accepted: links that keep pointing back to another one than they were reached from.
        troubles: how often each was met: (reached from, link, what was wrong).
    """

    def __init__(self, head: int, shape: ListShape[Row], links: Reader) -> None:
        self.head = head
        self.shape = shape
        self.links = links
        self.result: ListWalk[Row] = ListWalk()
        self.trail = [head]
        self.dropped = 0
        self.ended = False
        self.accepted: set[int] = set()
        self.troubles: Counter[tuple[int, int, str]] = Counter()

    def run(self) -> ListWalk[Row]:
        """This walks to the end, or to where it cannot go on."""
        link = self._head_links()[0]
        while not self.ended:
            link = self._follow(link) if link != self.head else self._close()
        return self.result

    def _follow(self, link: int) -> int:
        """This walks from an entry until it comes to the head, or ends."""
        head, trail, rows, limit = self.head, self.trail, self.result.rows, self.shape.limit
        read, visit, next_at = self.shape.read, self.shape.visit, self.shape.links_at
        prev_at = next_at + 1
        # Not an int to mypy, so that addresses need not be wrapped as Va one by one.
        offset: Any = self.shape.link_offset
        while link != head:
            address = link - offset
            try:
                values = read(address)
                if values[prev_at] != trail[-1] or address in rows:
                    link = self._look_again(link, (values[next_at], values[prev_at]))
                    continue
                rows[address] = visit(address, values)
            except (MemoryFault, Implausible) as error:
                link = self._look_again(link, None, str(error))
                continue
            trail.append(link)
            link = values[next_at]
            if len(trail) > limit and link != head:
                self._gap(link, f"more than {limit} entries")
                self.ended = True
                return head
        return head

    def _close(self) -> int:
        """This ends a walk that came to the head, if the way back is still the way that it came."""
        last = self._head_links()[1]
        if last != self.trail[-1]:
            return self._look_again(self.head, (self.head, last))
        elsewhere = self._first_elsewhere()
        if elsewhere is None:
            self.ended = True
            return self.head
        self.result.retries += 1
        if self._is_too_restless():
            return self._give_up(self.trail[elsewhere], _RESTLESS)
        while len(self.trail) > elsewhere:
            self._drop_last()
        return self._step_back()

    def _first_elsewhere(self) -> int | None:
        """This is the place in the trail of the first entry that lies there no more.

        The walk may have stood on entries while they were freed, and used again at the list's end:
        from there it came to the head without what lies between.
        """
        trail, links = self.trail, self.links
        try:
            before = [links(link)[1] for link in trail[1:]]
        except MemoryFault:
            before = [self._before(link) for link in trail[1:]]
        if before == trail[:-1]:
            return None
        for place, link in enumerate(trail[1:], 1):
            if before[place - 1] != trail[place - 1] and link not in self.accepted:
                return place
        return None

    def _before(self, link: int) -> int:
        try:
            return int(self.links(link)[1])
        except MemoryFault:
            return -1

    def _drop_last(self) -> None:
        self.dropped += 1
        self.result.rows.pop(self.trail.pop() - self.shape.link_offset, None)

    def _is_too_restless(self) -> bool:
        """This tells whether so much was walked again that the list cannot be followed."""
        return self.result.retries > _MAX_RETRIES or self.dropped > self.shape.limit

    def _look_again(self, link: int, links: tuple[int, int] | None, why: str = "") -> int:
        """This steps back after trouble at a link, or gets past it; it returns where to go on.

        Args:
            link: what was reached.
            links: its own ``next`` and ``prev``; None where it cannot be used at all.
            why: says why not.
        """
        self.result.retries += 1
        if links is not None and links[1] == self.trail[-1]:
            return self._forget_old_place(link)
        if links is not None:
            why = f"points back to {links[1]:#x}"
        trouble = (self.trail[-1], link, why)
        self.troubles[trouble] += 1
        why = f"{why} (reached from {self.trail[-1]:#x})"
        if self._is_too_restless():
            return self._give_up(link, f"{_RESTLESS}: {why}")
        if self.troubles[trouble] < _PERSISTENT:
            return self._step_back()
        return self._give_up(link, why) if links is None else self._get_past(link, links, why)

    def _forget_old_place(self, link: int) -> int:
        """This makes room for an entry that was met before, left the list, and came back."""
        if link == self.trail[-1] or self.result.retries > _MAX_RETRIES:
            return self._give_up(link, "the list returns to entries already seen")
        self.trail.remove(link)
        del self.result.rows[link - self.shape.link_offset]
        return link

    def _step_back(self) -> int:
        """This drops the rows of entries that lie no more where they lay, and gives the next link.

        An entry may be linked and yet elsewhere: freed, and used again at the end of the list.
        """
        trail, links = self.trail, self.links
        while len(trail) > 1:
            link, came_from = trail[-1], trail[-2]
            try:
                following, before = links(link)
                if before == came_from and links(before)[0] == link == links(following)[1]:
                    return int(following)
            except MemoryFault:
                pass
            self._drop_last()
        return self._head_links()[0]

    def _get_past(self, link: int, links: tuple[int, int], why: str) -> int:
        """This accepts what keeps pointing back to another entry than it was reached from."""
        address = Va(link - self.shape.link_offset)
        if address in self.result.rows:
            return self._give_up(link, f"the list returns to an entry already seen: {why}")
        # Between the two stores of a list_add or list_del an entry points back to the last but one.
        half_linked = self.trail[-2:-1] == [links[1]]
        if link == self.head:
            self.ended = half_linked
            return link if half_linked else self._give_up(links[1], f"the list's head {why}")
        self.accepted.add(link)
        if not half_linked:
            self._gap(link, why)
        try:
            self.result.rows[address] = self.shape.visit(address, self.shape.read(address))
        except (MemoryFault, Implausible) as error:
            self._gap(link, str(error))
        self.trail.append(link)
        return links[0]

    def _give_up(self, link: int, why: str) -> int:
        """This ends the walk with a gap, and with the entries that can be reached backwards."""
        found = self._backwards()
        self.result.rows.update(reversed(found.items()))
        self._gap(link, f"{why}; {len(found)} entries behind it were reached backwards")
        self.ended = True
        return self.head

    def _backwards(self) -> dict[int, Row]:
        """This walks backwards from the head to an entry already seen, or to the next trouble."""
        found: dict[int, Row] = {}
        seen, offset = self.result.rows, self.shape.link_offset
        room = self.shape.limit - len(seen)
        next_at = self.shape.links_at
        behind, link = self.head, self._head_links()[1]
        while link != self.head and len(found) < room:
            address = Va(link - offset)
            try:
                values = self.shape.read(address)
                if values[next_at] != behind or address in seen or address in found:
                    break
                found[address] = self.shape.visit(address, values)
            except (MemoryFault, Implausible):
                break
            behind, link = link, values[next_at + 1]
        return found

    def _head_links(self) -> tuple[int, int]:
        """These are the head's ``next`` and ``prev``."""
        try:
            following, before = self.links(self.head)
        except MemoryFault as fault:
            why = f"its head cannot be read: {fault}"
            raise WalkFailed(self.shape.structure, why) from fault
        return following, before

    def _gap(self, link: int, why: str) -> None:
        gap = Gap(self.shape.structure, Va(link - self.shape.link_offset), why)
        if gap not in self.result.gaps:
            self.result.gaps.append(gap)
