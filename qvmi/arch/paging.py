"""Paging geometries as data, with the one page-table walk that reads them.

References: Intel SDM volume 3A, chapter 4 (4-level and 5-level paging, tables 4-14 to 4-20);
AMD64 Architecture Programmer's Manual volume 2, section 5.3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va, canonical
from qvmi.errors import MemoryFault, TranslationFault

__all__ = [
    "X86_64_4_LEVEL",
    "X86_64_5_LEVEL",
    "Extent",
    "Geometry",
    "Level",
    "Permissions",
    "Step",
    "Translation",
    "extents",
    "translate",
    "walk",
]

ENTRY_SIZE: Final = 8
_ENTRY: Final = Struct("<Q")

ReadPhysical = Callable[[Pa, int], bytes]
"""Reads exactly so many bytes at a guest physical address, or raises MemoryFault."""


@dataclass(frozen=True, slots=True)
class Level:
    """This is one level of paging structures.

    Args:
        name: of its entries, in the manual's own word.
        shift_bits: position of the address bits that index it; its leaf maps 2**shift bytes.
        leaf_bit: the entry bit that makes it map a page instead of a table; 0 where it cannot.
        always_leaf: whether every entry maps a page, as those of the last level do.
    """

    name: str
    shift_bits: int
    leaf_bit: int = 0
    always_leaf: bool = False


@dataclass(frozen=True, slots=True)
class Geometry:
    """This is one way of translating addresses, from the top level down.

    Args:
        name: such as ``5-level``.
        va_bits: width of a virtual address.
        levels: the structures, top first.
        index_bits: width of each level's index.
        root_mask: the bits of the root register that hold the top table's physical address.
        address_mask: the bits of an entry that hold a physical address.
        present_bit, writable_bit, user_bit, no_execute_bit: entry bits.
    """

    name: str
    va_bits: int
    levels: tuple[Level, ...]
    index_bits: int = 9
    root_mask: int = 0x000F_FFFF_FFFF_F000
    address_mask: int = 0x000F_FFFF_FFFF_F000
    present_bit: int = 1 << 0
    writable_bit: int = 1 << 1
    user_bit: int = 1 << 2
    no_execute_bit: int = 1 << 63

    @property
    def table_size(self) -> int:
        """This is the size of one table in bytes."""
        return ENTRY_SIZE << self.index_bits

    def rights(self, everywhere: int, anywhere: int) -> int:
        """This combines the permission bits of all entries of a walk: the strictest wins.

        Args:
            everywhere: all entries and-ed.
            anywhere: all entries or-ed.
        """
        return (
            everywhere & (self.writable_bit | self.user_bit) | anywhere & self.no_execute_bit
        )


_LARGE_PAGE: Final = 1 << 7

_LOWER_LEVELS: Final = (
    Level("PML4E", 39),
    Level("PDPTE", 30, _LARGE_PAGE),
    Level("PDE", 21, _LARGE_PAGE),
    Level("PTE", 12, always_leaf=True),
)

X86_64_4_LEVEL: Final = Geometry("4-level", 48, _LOWER_LEVELS)
X86_64_5_LEVEL: Final = Geometry("5-level", 57, (Level("PML5E", 48), *_LOWER_LEVELS))


@dataclass(frozen=True, slots=True)
class Permissions:
    """These are the rights that all entries of a walk together leave."""

    writable: bool
    user: bool
    executable: bool


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
    everywhere, anywhere = -1, 0
    for level, address, entry in _entries(read, root, geometry, va):
        steps.append(Step(level.name, address, entry))
        everywhere &= entry
        anywhere |= entry
        if level.always_leaf or entry & level.leaf_bit:
            page_size = 1 << level.shift_bits
            pa = (entry & geometry.address_mask & -page_size) | (va & (page_size - 1))
            permissions = _permissions(geometry, geometry.rights(everywhere, anywhere))
            return Translation(va, Pa(pa), page_size, permissions, tuple(steps))
    raise AssertionError("the last level of a geometry always maps a page")


def translate(read: ReadPhysical, root: Pa, geometry: Geometry, va: Va) -> Pa:
    """This is :func:`walk` for those who want the physical address alone.

    Raises:
        TranslationFault: as :func:`walk`.
    """
    for level, _, entry in _entries(read, root, geometry, va):
        if level.always_leaf or entry & level.leaf_bit:
            offset_mask = (1 << level.shift_bits) - 1
            return Pa((entry & geometry.address_mask & ~offset_mask) | (va & offset_mask))
    raise AssertionError("the last level of a geometry always maps a page")


def _entries(
    read: ReadPhysical, root: Pa, geometry: Geometry, va: Va
) -> Iterator[tuple[Level, Pa, int]]:
    """This yields the present entries for an address, top first; the caller stops at a leaf."""
    if not canonical(va, geometry.va_bits):
        raise TranslationFault(va, why=f"not canonical for {geometry.va_bits}-bit addresses")
    table = root & geometry.root_mask
    index_mask = (1 << geometry.index_bits) - 1
    for level in geometry.levels:
        address = Pa(table + (va >> level.shift_bits & index_mask) * ENTRY_SIZE)
        try:
            entry: int = _ENTRY.unpack(read(address, ENTRY_SIZE))[0]
        except MemoryFault as fault:
            why = f"the {level.name} at {address:#x} lies outside of the guest's memory"
            raise TranslationFault(va, level=level.name, table=address, why=why) from fault
        if not entry & geometry.present_bit:
            why = f"{level.name} not present (entry {entry:#x} at {address:#x})"
            raise TranslationFault(va, level=level.name, entry=entry, table=address, why=why)
        yield level, address, entry
        table = entry & geometry.address_mask


def _permissions(geometry: Geometry, rights: int) -> Permissions:
    """This names combined permission bits."""
    return Permissions(
        writable=bool(rights & geometry.writable_bit),
        user=bool(rights & geometry.user_bit),
        executable=not rights & geometry.no_execute_bit,
    )


def extents(
    read: ReadPhysical, root: Pa, geometry: Geometry, start: Va, end: Va
) -> Iterator[Extent]:
    """This iterates what is mapped in [start, end), neighbours of one run joined.

    Whole tables are read at once, so that a gigabyte of 2 MiB pages costs a few reads. A table
    outside of the guest's memory maps nothing.

    Args:
        read: reads guest physical memory.
        root: of the top-level table.
        geometry: which levels there are.
        start: first address, page-aligned.
        end: first address behind the range; 2**64 is the end of the address space.
    """
    top = _Table(root & geometry.root_mask, depth=0, everywhere=-1, anywhere=0)
    last: _Run | None = None
    for run in _runs(read, geometry, top, start, end):
        if last is not None and last.continues_with(run.va, run.pa, run.rights):
            last.size += run.size
            continue
        if last is not None:
            yield last.extent(geometry)
        last = run
    if last is not None:
        yield last.extent(geometry)


@dataclass(frozen=True, slots=True)
class _Table:
    """This is a table on the way down: where it is, and the rights of the entries above it."""

    address: int
    depth: int
    everywhere: int
    anywhere: int


@dataclass(slots=True)
class _Run:
    """This is a growing run of pages of one table.

    Args:
        rights: the permission bits of all entries on the way, combined.
    """

    va: int
    pa: int
    size: int
    rights: int

    def continues_with(self, va: int, pa: int, rights: int) -> bool:
        """This tells whether a page lies right behind the run, in both spaces, with its rights."""
        size = self.size
        return va == self.va + size and pa == self.pa + size and rights == self.rights

    def extent(self, geometry: Geometry) -> Extent:
        """This is the run as a value."""
        permissions = _permissions(geometry, self.rights)
        return Extent(Va(self.va), Pa(self.pa), self.size, permissions)


def _runs(
    read: ReadPhysical, geometry: Geometry, table: _Table, start: int, end: int
) -> Iterator[_Run]:
    """This iterates the runs of pages that one table and those below it map in [start, end)."""
    level = geometry.levels[table.depth]
    shift, span = level.shift_bits, 1 << level.shift_bits
    first = start >> shift & (1 << geometry.index_bits) - 1
    run: _Run | None = None
    for position, entry in enumerate(_table_entries(read, geometry, table, first)):
        va = (start & -span) + (position << shift)
        if va >= end:
            break
        if not entry & geometry.present_bit:
            continue
        everywhere, anywhere = table.everywhere & entry, table.anywhere | entry
        target = entry & geometry.address_mask
        if level.always_leaf or entry & level.leaf_bit:
            rights = geometry.rights(everywhere, anywhere)
            if run is not None and run.continues_with(va, target & -span, rights):
                run.size += span
                continue
            if run is not None:
                yield run
            run = _Run(va, target & -span, span, rights)
            continue
        if run is not None:
            yield run
            run = None
        below = _Table(target, table.depth + 1, everywhere, anywhere)
        yield from _runs(read, geometry, below, max(start, va), min(end, va + span))
    if run is not None:
        yield run


def _table_entries(
    read: ReadPhysical, geometry: Geometry, table: _Table, first: int
) -> tuple[int, ...]:
    """This reads a table from one of its entries on; empty where it is outside of memory."""
    try:
        data = read(Pa(table.address), geometry.table_size)
    except MemoryFault:
        return ()
    return Struct(f"<{(len(data) // ENTRY_SIZE) - first}Q").unpack_from(data, first * ENTRY_SIZE)
