"""Maple trees: ranges of numbers, each with an entry, read while the kernel changes them.

References: Linux include/linux/maple_tree.h (``maple_range_64``, ``maple_enode``), lib/maple_tree.c
(``mte_to_node``, ``mas_safe_pivot``, ``ma_dead_node``); memory maps are kept in one since 6.1.
"""

from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

from qvmi.errors import CorruptTable, LayoutNotFound, MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["LAST_INDEX", "Leaf", "MapleTree", "Range"]

LAST_INDEX: Final = (1 << 64) - 1
"""``ULONG_MAX``, where every tree ends."""

_NODE_MASK: Final = 0xFF
"""``MAPLE_NODE_MASK``: nodes are aligned to 256 bytes; the bits below say of which kind they are."""
_KIND_SHIFT: Final = 3
_KIND_MASK: Final = 0xF
_LEAF: Final = 1
_RANGE: Final = 2
_ARANGE: Final = 3
_INTERNAL: Final = 2
_LARGEST_SPECIAL: Final = 4096
"""Internal entries up to here are marks, not nodes."""
_MAX_DEPTH: Final = 16
"""``MAPLE_HEIGHT_MAX`` is 31; half of it is enough for more ranges than there are addresses."""
_WORDS: Final = 32
_RETRIES: Final = 64
"""Each takes some microseconds; a change by a vCPU that is emulated, or waits for its turn, takes more."""
_POINTER: Final = Struct("<Q")


class Range(NamedTuple):
    """This is one entry with the numbers that it stands for, both ends included."""

    first: int
    last: int
    entry: int


class Leaf(NamedTuple):
    """These are the ranges of one leaf, and the last number that it stands for."""

    ranges: list[Range]
    last: int


class _Shape(NamedTuple):
    """This is where one kind of node has its pivots and slots, in words, and whether it is a leaf."""

    pivot: int
    slot: int
    slots: int
    leaf: bool = False


class _Torn(Exception):
    """This part of the tree was replaced while it was read."""


class _Unread(Exception):
    """This part of the tree cannot be read.

    Attributes:
        last: the last number that it stands for.
    """

    def __init__(self, why: str, last: int) -> None:
        super().__init__(why)
        self.last = last


class MapleTree:
    """This reads the maple trees of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.

    Raises:
        SymbolsError: the profile lacks what the trees need, or describes no possible layout.
    """

    def __init__(self, space: AddressSpace, symbols: Symbols) -> None:
        self._root = field_offset(symbols, "maple_tree", "ma_root")
        self._read_pointer = space.unpacker(_POINTER)
        self._read_node = space.unpacker(Struct(f"<{_WORDS}Q"))
        of_range = _shape(symbols, "maple_range_64")
        self._shapes = {
            _LEAF: of_range._replace(leaf=True),
            _RANGE: of_range,
            _ARANGE: _shape(symbols, "maple_arange_64"),
        }

    def leaf(self, tree: int, index: int, effort: Effort) -> tuple[Leaf, str]:
        """This reads the leaf that stands for a number.

        Args:
            tree: address of a ``struct maple_tree``.
            index: the number.
            effort: what it may cost.

        Returns:
            the leaf, and why it is empty where a part of the tree cannot be read.

        Raises:
            MemoryFault: not even the root can be read.
            Spent: enough was looked at.
        """
        for _ in range(_RETRIES):
            try:
                return self._leaf(tree + self._root, index, effort), ""
            except _Torn:
                effort.retries += 1
            except _Unread as unread:
                return Leaf([], unread.last), str(unread)
        try:
            leaf = self._leaf(tree + self._root, index, effort, torn=True)
        except _Unread as unread:
            return Leaf([], unread.last), str(unread)
        return leaf, "it changes faster than it can be read"

    def _leaf(self, root: int, index: int, effort: Effort, *, torn: bool = False) -> Leaf:
        """This descends to a leaf, and looks whether the way there is still the way.

        Args:
            root: where the pointer to the first node lies.
            index: what the leaf is to stand for.
            effort: what it may cost.
            torn: take whatever is found: a guest may stand still in the midst of a change.
        """
        entry = self._read_pointer(root)[0]
        if not _is_node(entry):
            return Leaf([Range(0, 0, entry)] if entry else [], LAST_INDEX)
        way = [(root, entry)]
        first, last = 0, LAST_INDEX
        for _ in range(_MAX_DEPTH):
            effort.spend(1)
            try:
                shape, words = self._node(entry, torn=torn)
                if shape.leaf:
                    ranges = list(_ranges(shape, words, first, last))
                    self._require_way(way if not torn else [])
                    return Leaf(ranges, last)
                first, last, place = _child(shape, words, (first, last), index)
            except (MemoryFault, Implausible) as error:
                self._require_way(way if not torn else [])
                raise _Unread(f"the node at {entry & ~_NODE_MASK:#x}: {error}", last) from error
            node, entry = entry & ~_NODE_MASK, words[place]
            way.append((node + _POINTER.size * place, entry))
        raise _Unread(f"more than {_MAX_DEPTH} levels", last)

    def _node(self, entry: int, *, torn: bool) -> tuple[_Shape, tuple[int, ...]]:
        """This reads a node by what a slot says of it."""
        shape = self._shapes.get(entry >> _KIND_SHIFT & _KIND_MASK)
        node = entry & ~_NODE_MASK
        if shape is None or not node:
            raise Implausible(f"no node: {entry:#x}")
        words = self._read_node(node)
        if words[0] & ~_NODE_MASK == node and not torn:
            raise _Torn  # it is its own parent: a dead one
        return shape, words

    def _require_way(self, way: list[tuple[int, int]]) -> None:
        """This raises _Torn where a pointer on the way has changed: nodes are replaced, and freed."""
        try:
            unchanged = all(self._read_pointer(at)[0] == held for at, held in way)
        except MemoryFault:
            unchanged = True  # what could not be read is not known to have changed
        if not unchanged:
            raise _Torn


def _is_node(entry: int) -> bool:
    """This tells whether a root points to a node. Corresponds to ``xa_is_node``."""
    return entry & 3 == _INTERNAL and entry > _LARGEST_SPECIAL


def _child(
    shape: _Shape, words: tuple[int, ...], bounds: tuple[int, int], index: int
) -> tuple[int, int, int]:
    """This is the child that stands for a number: its first and last one, and the word it is in.

    A pivot of 0 behind the first one is not in use: the slot before is the last. Corresponds to
    ``mas_safe_pivot``.
    """
    first, last = bounds
    for place in range(shape.slots - 1):
        pivot = words[shape.pivot + place]
        if not pivot and place:
            break
        if not first <= pivot <= last:
            raise Implausible(f"a pivot {pivot:#x} in a node of {first:#x} to {last:#x}")
        if index <= pivot:
            return first, pivot, shape.slot + place
        first = pivot + 1
    else:
        place = shape.slots - 1
    return first, last, shape.slot + place


def _ranges(shape: _Shape, words: tuple[int, ...], first: int, last: int) -> Iterator[Range]:
    """These are the ranges of a leaf that stands for [first, last] which have an entry."""
    for place in range(shape.slots):
        pivot = words[shape.pivot + place] if place < shape.slots - 1 else last
        if not pivot and place:
            pivot = last
        if not first <= pivot <= last:
            raise Implausible(f"a pivot {pivot:#x} in a leaf of {first:#x} to {last:#x}")
        entry = words[shape.slot + place]
        if entry:
            yield Range(first, pivot, entry)
        if pivot == last:
            break
        first = pivot + 1


def _shape(symbols: Symbols, name: str) -> _Shape:
    """This takes from a node's layout how many pivots and slots it has: one slot more than pivots."""
    if symbols.size_of(name) is None:
        raise LayoutNotFound(name)
    pivot, slot = (field_offset(symbols, name, one) // 8 for one in ("pivot", "slot"))
    slots = slot - pivot + 1
    if pivot < 1 or slots <= 1 or slot + slots > _WORDS:
        raise CorruptTable(
            "types", f"{name} has its pivots at {8 * pivot}, its slots at {8 * slot}"
        )
    return _Shape(pivot, slot, slots)
