"""XArrays: numbers, each with an entry, of which one may stand for many; read while the kernel changes them.

References: Linux include/linux/xarray.h (``struct xa_node``, ``xa_is_node``, ``xa_is_sibling``,
``xa_is_value``), lib/xarray.c (``xas_descend``, ``xas_store``), Documentation/core-api/xarray.rst.
"""

from struct import Struct
from typing import Final, NamedTuple

from qvmi.errors import CorruptTable, LayoutNotFound, MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Entry", "Leaf", "XArray"]

_CHUNK_SHIFT: Final = 6
_SLOTS: Final = 1 << _CHUNK_SHIFT
"""``XA_CHUNK_SIZE`` of every kernel that is not made for the smallest machines."""
_LAST_SLOT: Final = _SLOTS - 1
_MAX_SHIFT: Final = 60
_KIND_MASK: Final = 3
_INTERNAL: Final = 2
_VALUE: Final = 1
_LARGEST_SPECIAL: Final = 4096
"""Internal entries up to here are siblings and marks, not nodes."""
_RETRIES: Final = 64
"""Each takes some microseconds; a change by a vCPU that is emulated, or waits for its turn, takes more."""
_POINTER: Final = Struct("<Q")


class Entry(NamedTuple):
    """This is one entry.

    Args:
        first: the first number that it stands for.
        size: how many it stands for.
        value: the entry itself: a pointer, or one with bit 0 set that holds a number.
        marks: the bits of its marks; None where they are not told, for the only one of an array.
    """

    first: int
    size: int
    value: int
    marks: int | None

    @property
    def is_value(self) -> bool:
        """This tells whether it holds a number. Corresponds to ``xa_is_value``."""
        return bool(self.value & _VALUE)


class Leaf(NamedTuple):
    """These are some entries that follow each other.

    Args:
        entries: by number.
        following: the number behind all that were looked at; None at the end of the array.
    """

    entries: list[Entry]
    following: int | None


class _Node(NamedTuple):
    """These are the members of a ``struct xa_node`` that are used."""

    shift: int
    offset: int
    parent: int
    slots: tuple[int, ...]
    marks: tuple[int, ...]


class _Torn(Exception):
    """This part of the array was replaced while it was read."""


class XArray:
    """This reads the arrays of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what the arrays need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._head = field_offset(symbols, "xarray", "xa_head")
        self._read_pointer = space.unpacker(_POINTER)
        self._layout = _node_layout(symbols)
        self._read_node = space.unpacker(self._layout)
        self._slots = field_offset(symbols, "xa_node", "slots")

    def leaf(self, xarray: int, index: int, effort: Effort) -> Leaf:
        """This reads the entries from a number on that are in one node.

        Args:
            xarray: address of a ``struct xarray``.
            index: the first number that is wanted; an entry that stands for it may begin before.
            effort: what it may cost.

        Raises:
            MemoryFault, Implausible: it cannot be read, is no such array, or changes all the time.
            Spent: enough was looked at.
        """
        why: Exception = Implausible("it changes faster than it can be read")
        for _ in range(_RETRIES):
            way: list[tuple[int, int]] = []
            try:
                leaf = self._leaf(xarray + self._head, index, effort, way)
            except (MemoryFault, Implausible) as error:
                why = error
                if self._is_the_way(way):
                    raise
            else:
                if self._is_the_way(way):
                    return leaf
            effort.retries += 1
        raise why

    def _is_the_way(self, way: list[tuple[int, int]]) -> bool:
        """This tells whether the pointers on the way still lead where they led: nodes are freed."""
        try:
            return all(self._read_pointer(at)[0] == held for at, held in way)
        except MemoryFault:
            return True  # what cannot be read is not known to have changed

    def _leaf(self, at: int, index: int, effort: Effort, way: list[tuple[int, int]]) -> Leaf:
        """This descends to the first node from a number on that has entries, and notes the way."""
        entry = self._read_pointer(at)[0]
        way.append((at, entry))
        if not _is_node(entry):
            return Leaf([Entry(0, 1, entry, None)] if entry and not index else [], None)
        node = self._node(entry, None, effort)
        root = node
        while True:
            base = index >> node.shift + _CHUNK_SHIFT << node.shift + _CHUNK_SHIFT
            if node is root and base:
                return Leaf([], None)
            slot = (index - base) >> node.shift
            while slot < _SLOTS and not node.slots[slot]:
                slot += 1
            following = None if node is root else base + (_SLOTS << node.shift)
            if slot == _SLOTS:
                return Leaf([], following)
            if not _is_node(node.slots[slot]):
                return _entries(node, base, slot, following)
            index = max(index, base + (slot << node.shift))
            parent, entry = entry, node.slots[slot]
            way.append((parent - _INTERNAL + self._slots + slot * _POINTER.size, entry))
            node = self._node(entry, (parent, node.shift, slot), effort)

    def _node(self, entry: int, place: tuple[int, int, int] | None, effort: Effort) -> _Node:
        """This reads a node, which must say itself that it is where it was found.

        Args:
            entry: what leads to it.
            place: what leads to its parent, the parent's shift, and the slot; None for the first.
            effort: what it may cost.
        """
        effort.spend(1)
        values = self._read_node(entry - _INTERNAL)
        shift, offset, above = values[:3]
        node = _Node(shift, offset, above, values[3 : 3 + _SLOTS], values[3 + _SLOTS :])
        if place is None:
            right = not above and not shift % _CHUNK_SHIFT and shift <= _MAX_SHIFT
        else:
            parent, above_shift, slot = place
            expected = (above_shift - _CHUNK_SHIFT, slot, parent - _INTERNAL)
            right = (shift, offset, above) == expected
        if not right:
            raise Implausible(f"no node at {entry - _INTERNAL:#x}: it says it is elsewhere")
        return node


def _is_node(entry: int) -> bool:
    """This tells whether an entry leads to a node. Corresponds to ``xa_is_node``."""
    return entry & _KIND_MASK == _INTERNAL and entry > _LARGEST_SPECIAL


def _sibling_of(entry: int) -> int | None:
    """This is the slot that a sibling entry points to; None for another kind of entry."""
    slot = entry >> 2
    return slot if entry & _KIND_MASK == _INTERNAL and slot < _LAST_SLOT else None


def _entries(node: _Node, base: int, slot: int, following: int | None) -> Leaf:
    """These are the entries of a node from a slot on, up to the first that leads to another node."""
    while slot and _sibling_of(node.slots[slot]) is not None:
        slot -= 1
    entries: list[Entry] = []
    while slot < _SLOTS:
        value = node.slots[slot]
        if _is_node(value):
            return Leaf(entries, base + (slot << node.shift))
        behind = slot + 1
        while behind < _SLOTS and _sibling_of(node.slots[behind]) == slot:
            behind += 1
        if value and value & _KIND_MASK != _INTERNAL:
            marks = sum((bits >> slot & 1) << number for number, bits in enumerate(node.marks))
            first, size = base + (slot << node.shift), (behind - slot) << node.shift
            entries.append(Entry(first, size, value, marks))
        slot = behind
    return Leaf(entries, following)


def _node_layout(symbols: Symbols) -> Struct:
    """This is a whole node: shift, offset, parent, slots and marks.

    Raises:
        SymbolsError: there is no such struct, or its members do not lie in this order.
    """
    size = symbols.size_of("xa_node")
    if size is None:
        raise LayoutNotFound("xa_node")
    names = (("shift", 1), ("offset", 1), ("parent", 8), ("slots", 8 * _SLOTS), ("marks", 8))
    forms = ("B", "B", "Q", f"{_SLOTS}Q", "Q")
    layout, position = "<", 0
    for (name, width), form in zip(names, forms, strict=True):
        offset = field_offset(symbols, "xa_node", name)
        if not position <= offset <= size - width:
            raise CorruptTable("types", f"xa_node.{name} at {offset}")
        layout += f"{offset - position}x{form}"
        position = offset + width
    return Struct(layout)
