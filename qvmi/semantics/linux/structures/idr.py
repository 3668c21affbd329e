"""Numbers that the kernel gives out: an IDR, which finds an object by its number.

References: Linux include/linux/idr.h, lib/idr.c, include/linux/xarray.h (``xa_is_node``,
``xa_to_node``).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from struct import Struct
from typing import Any, Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.structures.list import Implausible, ListWalk
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Idr"]

_SLOTS: Final = 64
"""``XA_CHUNK_SIZE``: entries of one node."""
_SLOT_BITS: Final = 6
_POINTER: Final = Struct("<Q")
_KIND_MASK: Final = 3
_INTERNAL: Final = 2
_LARGEST_SPECIAL: Final = 4096
"""Internal entries up to here are marks, such as XA_RETRY_ENTRY, not nodes."""


class Idr:
    """This reads one IDR.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        structure: its name for gaps and errors, such as ``init_pid_ns.idr``.
        at: address of the ``struct idr``.
        limit: more entries and nodes than it can have; more is a lie.
        levels: nodes on the way to an object, at most.

    Raises:
        SymbolsError: the profile lacks what IDRs need, or describes no possible layout.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        *,
        structure: str,
        at: Va,
        limit: int,
        levels: int,
    ) -> None:
        self._structure = structure
        self._limit = limit
        self._levels = levels
        root = field_offset(symbols, "idr", "idr_rt") + field_offset(symbols, "xarray", "xa_head")
        self._root = Va(at + root)
        self._read_pointer = space.unpacker(_POINTER)
        self._read_shift = space.unpacker(Struct("<B"))
        self._read_slots = space.unpacker(Struct(f"<{_SLOTS}Q"))
        self._shift_offset = field_offset(symbols, "xa_node", "shift")
        self._slots_offset = field_offset(symbols, "xa_node", "slots")

    def entries(self, result: ListWalk[Any]) -> Iterator[tuple[int, int]]:
        """This iterates (number, object), in order; what it cannot follow becomes a gap of a walk.

        Raises:
            WalkFailed: not even the root can be read.
        """
        try:
            root = self._read_pointer(self._root)[0]
        except MemoryFault as fault:
            raise WalkFailed(self._structure, str(fault)) from fault
        left = self._limit
        stack = [_Slot(self._root, root, 0, (self._levels + 1) * _SLOT_BITS)]
        while stack:
            slot = stack.pop()
            left -= 1
            if not left:
                why = f"more than {self._limit} entries"
                result.gaps.append(Gap(self._structure, Va(slot.address), why))
                return
            if not slot.entry & _KIND_MASK:
                if slot.entry:
                    yield slot.first, slot.entry
                continue
            try:
                below, torn = self._below(slot)
                stack.extend(below)
                result.retries += torn
            except (MemoryFault, Implausible) as error:
                result.gaps.append(Gap(self._structure, Va(slot.address), str(error)))

    def has(self, number: int, found: int) -> bool:
        """This looks one number up anew; where that cannot be done it is taken to be there still."""
        try:
            return self.find(number) == found
        except MemoryFault:
            return True

    def find(self, number: int) -> int:
        """This is the object that has a number, 0 where none has; what is no table has any.

        Raises:
            MemoryFault: it cannot be read.
        """
        entry = self._read_pointer(self._root)[0]
        read_pointer, shift_offset, slots_offset = (
            self._read_pointer,
            self._shift_offset,
            self._slots_offset,
        )
        above = number
        for _ in range(self._levels):
            if entry & _KIND_MASK != _INTERNAL or entry <= _LARGEST_SPECIAL:
                break
            node = entry - _INTERNAL
            shift = self._read_shift(node + shift_offset)[0]
            slot = above >> shift
            if slot >= _SLOTS:  # the table ends before that number
                return 0
            above -= slot << shift
            entry = read_pointer(node + slots_offset + 8 * slot)[0]
        return 0 if above else int(entry)

    def _below(self, slot: "_Slot") -> tuple[Iterable["_Slot"], bool]:
        """This gives the slots in use of the node that a slot holds, the last one first.

        If the slot holds it no longer, the node may have been freed while it was read: then it is
        the slot itself, as it is now, and true.
        """
        if not _is_node(slot.entry):
            raise Implausible(f"an entry of no known kind: {slot.entry:#x}")
        node = slot.entry - _INTERNAL
        shift = self._read_shift(node + self._shift_offset)[0]
        at = node + self._slots_offset
        entries = self._read_slots(at)
        now = self._read_pointer(slot.address)[0]
        if now != slot.entry:
            return (replace(slot, entry=now),), True
        if shift % _SLOT_BITS or shift >= slot.above:
            raise Implausible(f"a node of shift {shift} below one of {slot.above}")
        used = (place for place in range(_SLOTS - 1, -1, -1) if entries[place])
        below = (
            _Slot(at + 8 * place, entries[place], slot.first + (place << shift), shift)
            for place in used
        )
        return below, False


@dataclass(frozen=True, slots=True)
class _Slot:
    """This is a place in the table that holds something.

    Args:
        address: of the slot itself.
        entry: what it held.
        first: the lowest number that it stands for.
        above: the shift of the node that it is in.
    """

    address: int
    entry: int
    first: int
    above: int


def _is_node(entry: int) -> bool:
    """This tells whether an entry of an xarray points to a node. Corresponds to ``xa_is_node``."""
    return entry & _KIND_MASK == _INTERNAL and entry > _LARGEST_SPECIAL
