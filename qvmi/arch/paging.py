"""Paging geometries as data, with the one page-table walk that reads them.

References: Intel SDM volume 3A, chapter 4 (4-level and 5-level paging, tables 4-14 to 4-20);
AMD64 Architecture Programmer's Manual volume 2, section 5.3.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va, canonical
from qvmi.arch.page_table import ENTRY_SIZE, EntryForm, entry_runs
from qvmi.errors import MemoryFault, TranslationFault

__all__ = [
    "MAX_TABLES",
    "X86_64_4_LEVEL",
    "X86_64_5_LEVEL",
    "Extent",
    "Geometry",
    "Level",
    "Permissions",
    "Step",
    "Translation",
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
_SPACE_END: Final = 1 << 64

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
        forms: how each level's entries are recognised as mapping one run; made from the others.
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
    forms: tuple[EntryForm, ...] = field(init=False, repr=False, compare=False)

    @property
    def table_size(self) -> int:
        """This is the size of one table in bytes."""
        return ENTRY_SIZE << self.index_bits

    def rights(self, above: int, entry: int) -> int:
        """This combines the permission bits of an entry with those above it: the strictest wins."""
        granted = self.writable_bit | self.user_bit
        return above & entry & granted | (above | entry) & self.no_execute_bit

    def __post_init__(self) -> None:
        rights = self.writable_bit | self.user_bit | self.no_execute_bit
        forms = []
        for level in self.levels:
            leaf = self.present_bit if level.always_leaf else level.leaf_bit
            size = 1 << level.shift_bits
            decisive = self.present_bit | leaf | rights | self.address_mask & -size
            forms.append(
                EntryForm.of(present=self.present_bit, leaf=leaf, decisive=decisive, page_size=size)
            )
        object.__setattr__(self, "forms", tuple(forms))


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
    rights = geometry.writable_bit | geometry.user_bit
    for level, address, entry in _entries(read, root, geometry, va):
        steps.append(Step(level.name, address, entry))
        rights = geometry.rights(rights, entry)
        if level.always_leaf or entry & level.leaf_bit:
            page_size = 1 << level.shift_bits
            pa = (entry & geometry.address_mask & -page_size) | (va & (page_size - 1))
            return Translation(va, Pa(pa), page_size, _permissions(geometry, rights), tuple(steps))
    raise AssertionError("the last level of a geometry always maps a page")


def steps(read: ReadPhysical, root: Pa, geometry: Geometry, va: Va) -> Iterator[Step]:
    """This iterates the entries of :func:`walk` as they are read, the one that stops it included.

    Raises:
        TranslationFault: as :func:`walk`, behind the last entry that could be read.
    """
    try:
        for level, address, entry in _entries(read, root, geometry, va):
            yield Step(level.name, address, entry)
            if level.always_leaf or entry & level.leaf_bit:
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
    half = 1 << (geometry.va_bits - 1)
    for lowest, highest in ((0, half), (_SPACE_END - half, _SPACE_END)):
        low, high = max(start, lowest), min(end, highest)
        if low < high:
            yield from _joined(geometry, _pages(read, root, geometry, low, high), low, high)


def _joined(
    geometry: Geometry, pages: Iterable[tuple[int, int, int, int]], start: int, end: int
) -> Iterator[Extent]:
    """This joins pages that follow each other in both spaces, and cuts what is out of the range."""

    def extent() -> Extent:
        va = max(first, start)
        size = min(behind, end) - va
        return Extent(Va(va), Pa(va + distance), size, _permissions(geometry, allowed))

    first = behind = distance = allowed = 0
    for va, pa, rights, size in pages:
        if va == behind and pa - va == distance and rights == allowed:
            behind += size
            continue
        if first < behind:
            yield extent()
        first, behind, distance, allowed = va, va + size, pa - va, rights
    if first < behind:
        yield extent()


def _pages(
    read: ReadPhysical, root: Pa, geometry: Geometry, start: int, end: int
) -> Iterator[tuple[int, int, int, int]]:
    """This iterates (va, pa, rights, size) of runs of pages mapped in [start, end), by address."""
    tables = _Tables(read, geometry)
    granted, denied = geometry.writable_bit | geometry.user_bit, geometry.no_execute_bit
    # From the top level down: what is left of a table, and the rights that lead to it.
    path = [(tables.present(root & geometry.root_mask, 0, start, end), granted)]
    while path:
        entries, above = path[-1]
        level = geometry.levels[len(path) - 1]
        span = 1 << level.shift_bits
        for va, entry, length in entries:
            rights = above & entry & granted | (above | entry) & denied
            target = entry & geometry.address_mask
            if level.always_leaf or entry & level.leaf_bit:
                yield va, target & -span, rights, span * length
                continue
            below = tables.present(target, len(path), max(start, va), min(end, va + span))
            path.append((below, rights))
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
        geometry = self._geometry
        try:
            table = self._read(Pa(address), geometry.table_size)
        except MemoryFault:
            return
        shift = geometry.levels[depth].shift_bits
        first = start >> shift & (1 << geometry.index_bits) - 1
        base = (start >> shift) - first
        count = (end - 1 >> shift) - (start >> shift) + 1
        for at, entry, length in entry_runs(table, geometry.forms[depth], first, count):
            yield base + at << shift, entry, length
