"""The one page-table walk, which reads the geometries of :mod:`qvmi.arch.geometry`.

References: Intel SDM volume 3A, chapter 4 (4-level and 5-level paging); AMD64 Architecture
Programmer's Manual volume 2, section 5.3; Arm Architecture Reference Manual (DDI 0487), D8.2.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.arch.geometry import (
    X86_64_4_LEVEL,
    X86_64_5_LEVEL,
    Geometry,
    Half,
    Level,
    Permissions,
    aarch64_geometry,
)
from qvmi.arch.page_table import ENTRY_SIZE, entry_runs
from qvmi.errors import MemoryFault, TranslationFault

__all__ = [
    "MAX_TABLES",
    "X86_64_4_LEVEL",
    "X86_64_5_LEVEL",
    "Extent",
    "Geometry",
    "Half",
    "Level",
    "Permissions",
    "Step",
    "Translation",
    "aarch64_geometry",
    "extents",
    "steps",
    "translate",
    "walk",
]

MAX_TABLES: Final = 1 << 13
"""What one look at a range reads at most: enough for 16 GiB in pages of 4 KiB.

Tables that lead to each other would keep a look at the whole address space busy for years.
"""

_ENTRY: Final = Struct("<Q")

ReadPhysical = Callable[[Pa, int], bytes]
"""Reads exactly so many bytes at a guest physical address, or raises MemoryFault."""


@dataclass(frozen=True, slots=True)
class Step:
    """This is one entry that a walk read.

    Args:
        level: the entry's kind, such as ``PDE``.
        address: where the entry lies, guest physical.
        entry: its value.
    """

    level: str
    address: Pa
    entry: int


@dataclass(frozen=True, slots=True)
class Translation:
    """This is where a virtual address leads, with every entry on the way."""

    va: Va
    pa: Pa
    page_size: int
    permissions: Permissions
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """This is a run of virtual addresses that maps to a run of physical addresses.

    Args:
        va: its first virtual address.
        pa: the physical address that maps to.
        size: in bytes.
        permissions: of all its pages.
    """

    va: Va
    pa: Pa
    size: int
    permissions: Permissions


def walk(read: ReadPhysical, root: Pa, geometry: Geometry, va: Va) -> Translation:
    """This walks the page tables for one address.

    Args:
        read: reads guest physical memory.
        root: of the top-level table.
        geometry: which levels there are.
        va: the address to translate.

    Raises:
        TranslationFault: the address is not canonical, an entry is not present (it says at which
            level), or a table lies outside of the guest's memory.
    """
    steps: list[Step] = []
    denied = 0
    for level, address, entry in _entries(read, root, geometry, va):
        steps.append(Step(level.name, address, entry))
        is_leaf = entry & level.leaf_mask == level.leaf
        denied |= geometry.denied(entry, is_leaf)
        if is_leaf:
            page_size = 1 << level.shift_bits
            pa = (geometry.target(entry) & -page_size) | (va & (page_size - 1))
            return Translation(va, Pa(pa), page_size, Permissions.but(denied), tuple(steps))
    raise AssertionError("the last level of a geometry always maps a page")


def steps(read: ReadPhysical, root: Pa, geometry: Geometry, va: Va) -> Iterator[Step]:
    """This iterates the entries of :func:`walk` as they are read, the one that stops it included.

    Raises:
        TranslationFault: as :func:`walk`, behind the last entry that could be read.
    """
    try:
        for level, address, entry in _entries(read, root, geometry, va):
            yield Step(level.name, address, entry)
            if entry & level.leaf_mask == level.leaf:
                return
    except TranslationFault as fault:
        if fault.table is not None and fault.entry is not None:
            yield Step(fault.level, fault.table, fault.entry)
        raise


def translate(read: ReadPhysical, root: Pa, geometry: Geometry, va: Va) -> Pa:
    """This is :func:`walk` for those who want the physical address alone.

    Raises:
        TranslationFault: as :func:`walk`.
    """
    for level, _, entry in _entries(read, root, geometry, va):
        if entry & level.leaf_mask == level.leaf:
            offset_mask = (1 << level.shift_bits) - 1
            return Pa((geometry.target(entry) & ~offset_mask) | (va & offset_mask))
    raise AssertionError("the last level of a geometry always maps a page")


def _entries(
    read: ReadPhysical, root: Pa, geometry: Geometry, va: Va
) -> Iterator[tuple[Level, Pa, int]]:
    """This yields the present entries for an address, top first; the caller stops at a leaf."""
    if va >> geometry.top_bits not in geometry.tops:
        raise TranslationFault(va, why=_why_never(geometry))
    table = root & geometry.root_mask
    mask, high_mask, shift = geometry.address_mask, geometry.high_mask, geometry.high_shift_bits
    for level in geometry.levels:
        index = va >> level.shift_bits & (1 << level.index_bits) - 1
        address = Pa(table + index * ENTRY_SIZE)
        try:
            entry: int = _ENTRY.unpack(read(address, ENTRY_SIZE))[0]
        except MemoryFault as fault:
            why = f"the {level.name} at {address:#x} lies outside of the guest's memory"
            raise TranslationFault(va, level=level.name, table=address, why=why) from fault
        if entry & level.present != level.present:
            why = f"{level.name} not present (entry {entry:#x} at {address:#x})"
            raise TranslationFault(va, level=level.name, entry=entry, table=address, why=why)
        yield level, address, entry
        table = entry & mask | (entry & high_mask) << shift  # Geometry.target, without a call


def _why_never(geometry: Geometry) -> str:
    if geometry.half is Half.BOTH:
        return f"not canonical for {geometry.va_bits}-bit addresses"
    return f"not in the {geometry.half} half of {geometry.va_bits}-bit addresses"


def extents(
    read: ReadPhysical, root: Pa, geometry: Geometry, start: Va, end: Va
) -> Iterator[Extent]:
    """This iterates what is mapped in [start, end), neighbours of one run joined.

    Whole tables are read at once, so that a gigabyte of 2 MiB pages costs a few reads. A table
    outside of the guest's memory maps nothing, nor do addresses that are not canonical.

    Args:
        read: reads guest physical memory.
        root: of the top-level table.
        geometry: which levels there are.
        start: first address.
        end: first address behind the range; 2**64 is the end of the address space.

    Raises:
        TranslationFault: half of the address space takes more than MAX_TABLES tables.
    """
    for lowest, highest in geometry.spans:
        low, high = max(start, lowest), min(end, highest)
        if low < high:
            yield from _joined(_pages(read, root, geometry, low, high), low, high)


def _joined(pages: Iterable[tuple[int, int, int, int]], start: int, end: int) -> Iterator[Extent]:
    """This joins pages that follow each other in both spaces, and cuts what is out of the range."""

    def extent() -> Extent:
        va = max(first, start)
        size = min(behind, end) - va
        return Extent(Va(va), Pa(va + distance), size, Permissions.but(denied))

    first = behind = distance = denied = 0
    for va, pa, refused, size in pages:
        if va == behind and pa - va == distance and refused == denied:
            behind += size
            continue
        if first < behind:
            yield extent()
        first, behind, distance, denied = va, va + size, pa - va, refused
    if first < behind:
        yield extent()


def _pages(
    read: ReadPhysical, root: Pa, geometry: Geometry, start: int, end: int
) -> Iterator[tuple[int, int, int, int]]:
    """This iterates (va, pa, what is denied, size) of runs of pages in [start, end), by address."""
    tables = _Tables(read, geometry)
    # From the top level down: what is left of a table, and what is denied on the way to it.
    path = [(tables.present(root & geometry.root_mask, 0, start, end), 0)]
    while path:
        entries, above = path[-1]
        level = geometry.levels[len(path) - 1]
        span = 1 << level.shift_bits
        for va, entry, length in entries:
            is_leaf = entry & level.leaf_mask == level.leaf
            denied = above | geometry.denied(entry, is_leaf)
            target = geometry.target(entry)
            if is_leaf:
                yield va, target & -span, denied, span * length
                continue
            below = tables.present(target, len(path), max(start, va), min(end, va + span))
            path.append((below, denied))
            break
        else:
            path.pop()


class _Tables:
    """This reads whole tables, and no more than MAX_TABLES of them."""

    def __init__(self, read: ReadPhysical, geometry: Geometry) -> None:
        self._read = read
        self._geometry = geometry
        self._left = MAX_TABLES

    def present(
        self, address: int, depth: int, start: int, end: int
    ) -> Iterator[tuple[int, int, int]]:
        """This iterates (virtual address, entry, length) of the runs of a table in [start, end).

        Args:
            address: of the table.
            depth: which of the geometry's levels it is of.
            start: within the first entry to look at.
            end: behind the last one.

        Raises:
            TranslationFault: too many tables were read already.
        """
        if not self._left:
            raise TranslationFault(Va(start), why=f"more than {MAX_TABLES} page tables to read")
        self._left -= 1
        geometry, level = self._geometry, self._geometry.levels[depth]
        try:
            table = self._read(Pa(address), level.table_size)
        except MemoryFault:
            return
        shift = level.shift_bits
        first = start >> shift & (1 << level.index_bits) - 1
        base = (start >> shift) - first
        count = (end - 1 >> shift) - (start >> shift) + 1
        for at, entry, length in entry_runs(table, geometry.forms[depth], first, count):
            yield base + at << shift, entry, length
