"""The memory of a process: which of it is there, and where what it has not touched would come from.

References: Linux mm/memory.c (``handle_pte_fault``, ``do_anonymous_page``, ``do_fault``: an entry of zero was
never touched; one that is not present and not zero is swapped out, or kept from the process),
include/linux/mm_types.h (``vm_ops`` of special mappings, such as that of the vdso).
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch.paging import extents
from qvmi.errors import MemoryFault, TranslationFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import MemoryMapping
from qvmi.semantics.linux.fs.file_content import folio_of
from qvmi.semantics.linux.fs.page_cache import CachedFiles
from qvmi.semantics.linux.pages.memmap import MemMap
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.structures.xarray import Entry
from qvmi.semantics.rows.process_memory import Held, MemoryPiece
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["ProcessMemory"]

_POINTER: Final = Struct("<Q")


class _Back(NamedTuple):
    """This is what is behind a mapping.

    Args:
        mapping: its ``address_space``, 0 for none.
        first: number of the page of the file that the mapping begins with.
        special: whether it is of no file, and the kernel fills it.
        in_memory: whether the file is in memory alone.
        size: of the file in bytes.
    """

    mapping: int = 0
    first: int = 0
    special: bool = False
    in_memory: bool = False
    size: int = 0


class _Pages(NamedTuple):
    """These are pages [first, end) of a file, and where they are."""

    first: int
    end: int
    held: Held
    page: Va = Va(0)
    offset: int = 0

    def if_any(self) -> Iterator["_Pages"]:
        """This iterates it where it is not empty."""
        if self.first < self.end:
            yield self


class ProcessMemory:
    """This tells of the memory of the processes of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        files: knows the files that are mapped.
        memmap: tells of pages.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, *, files: CachedFiles, memmap: MemMap
    ) -> None:
        self._files = files
        self._memmap = memmap
        self._memory = space.memory
        self._read_pointer = space.unpacker(_POINTER)
        self._mapping = field_offset(symbols, "file", "f_mapping")
        self._host = field_offset(symbols, "address_space", "host")
        self._read_vma = compile_reader(
            space,
            (field_offset(symbols, "vm_area_struct", "vm_start"), "Q"),
            (field_offset(symbols, "vm_area_struct", "vm_pgoff"), "Q"),
            (field_offset(symbols, "vm_area_struct", "vm_file"), "Q"),
            (field_offset(symbols, "vm_area_struct", "vm_ops"), "Q"),
        )

    def pieces(
        self, user: AddressSpace, mappings: Iterable[MemoryMapping], effort: Effort
    ) -> Iterator[MemoryPiece]:
        """This iterates the pieces of mappings, in their order.

        Args:
            user: the address space of the process.
            mappings: of the process.
            effort: what it may cost; once it is spent, the rest of each mapping is missing.
        """
        for row in mappings:
            yield from _joined(self._bounded(user, row, effort))

    def read(self, user: AddressSpace, piece: MemoryPiece, va: Va, size: int) -> bytes:
        """This reads a part of a piece that is in memory or in the page cache.

        Raises:
            MemoryFault: it is not there any more.
        """
        if piece.held is Held.MEMORY:
            return user.read(va, size)
        try:
            before = self._memmap.at(piece.page)
            data = self._memory.read(Pa(before.first + piece.offset + va - piece.start), size)
            if self._memmap.at(piece.page) == before and before.mapping:
                return data
        except Implausible as error:
            raise MemoryFault(va, size, kind="virtual", why=str(error)) from error
        raise MemoryFault(va, size, kind="virtual", why="it has just left the page cache")

    def _bounded(
        self, user: AddressSpace, row: MemoryMapping, effort: Effort
    ) -> Iterator[MemoryPiece]:
        reached = row.start
        try:
            for piece in self._of_mapping(user, row, effort):
                yield piece
                reached = piece.end
        except (MemoryFault, Implausible, Spent) as error:
            yield MemoryPiece(reached, row.end, row.permissions, Held.MISSING, reason=str(error))

    def _of_mapping(
        self, user: AddressSpace, row: MemoryMapping, effort: Effort
    ) -> Iterator[MemoryPiece]:
        back = self._back(row)
        reached = row.start
        for run in extents(user.memory.read, user.root, user.geometry, row.start, row.end):
            effort.spend(1)
            yield from self._untouched(user, row, back, (reached, run.va), effort)
            reached = Va(run.va + run.size)
            yield MemoryPiece(run.va, reached, row.permissions, Held.MEMORY)
        yield from self._untouched(user, row, back, (reached, row.end), effort)

    def _back(self, row: MemoryMapping) -> _Back:
        """This is what is behind a mapping.

        Raises:
            MemoryFault: it cannot be read.
            Implausible: there is another mapping now.
        """
        start, first, file, operations = self._read_vma(row.address)
        if start != row.start:
            raise Implausible(f"the mapping at {row.start:#x} has just been changed")
        if not file:
            return _Back(special=bool(operations))
        mapping = self._read_pointer(file + self._mapping)[0]
        supers = self._files.super_blocks
        inode = supers.inode(Va(self._read_pointer(mapping + self._host)[0]))
        if inode.address + supers.pages != mapping:
            return _Back(
                special=True
            )  # pages of a device, which the kernel alone knows how to read
        system = supers.file_system(inode.super_block)
        return _Back(mapping, first, system.huge_pages, system.in_memory, inode.size)

    def _untouched(
        self,
        user: AddressSpace,
        row: MemoryMapping,
        back: _Back,
        bounds: tuple[int, int],
        effort: Effort,
    ) -> Iterator[MemoryPiece]:
        """This iterates the pieces of a range that no page table maps."""
        spans = {level.name: 1 << level.shift_bits for level in user.geometry.levels}
        va, end = bounds
        while va < end:
            effort.spend(1)
            span, held, why = PAGE_SIZE, Held.MEMORY, ""
            try:
                user.translate(Va(va))
            except TranslationFault as fault:
                span = spans.get(fault.level, PAGE_SIZE)
                held = Held.MISSING if fault.entry is None or fault.entry else Held.ZEROS
                why = str(fault) if fault.entry is None else "swapped out, or not accessible"
            following = min((va | (span - 1)) + 1, end)
            if held is Held.ZEROS:
                yield from self._filled(row, back, (va, following), effort)
            else:
                reason = why if held is Held.MISSING else ""
                yield MemoryPiece(Va(va), Va(following), row.permissions, held, reason=reason)
            va = following

    def _filled(
        self, row: MemoryMapping, back: _Back, bounds: tuple[int, int], effort: Effort
    ) -> Iterator[MemoryPiece]:
        """This iterates what a range would be filled with when it is touched."""
        va, end = bounds
        if not back.mapping or back.special:
            held = Held.NOWHERE if back.special else Held.ZEROS
            yield MemoryPiece(Va(va), Va(end), row.permissions, held)
            return
        to_va = row.start - back.first * PAGE_SIZE
        first, last = (va - to_va) // PAGE_SIZE, (end - to_va) // PAGE_SIZE
        for run in self._pages(back, first, last, effort):
            start, behind = (Va(number * PAGE_SIZE + to_va) for number in (run.first, run.end))
            yield MemoryPiece(start, behind, row.permissions, run.held, run.page, run.offset)

    def _pages(self, back: _Back, first: int, last: int, effort: Effort) -> Iterator[_Pages]:
        """This iterates the pages [first, last) of a file by where they are."""
        absent = Held.ZEROS if back.in_memory else Held.NOWHERE
        behind = min(last, max(first, -(-back.size // PAGE_SIZE)))
        pages = back.mapping - self._files.super_blocks.pages + self._files.pages
        reached, index = first, first
        while reached < behind:
            leaf = self._files.array.leaf(pages, index, effort)
            for entry in leaf.entries:
                start, end = max(reached, entry.first), min(behind, entry.first + entry.size)
                if start < end:
                    yield from _Pages(reached, start, absent).if_any()
                    yield _Pages(start, end, *self._of_entry(back, entry, start))
                    reached = end
            if leaf.following is None:
                break
            index = leaf.following
        yield from _Pages(reached, behind, absent).if_any()
        yield from _Pages(max(reached, behind), last, Held.NOWHERE).if_any()

    def _of_entry(self, back: _Back, entry: Entry, start: int) -> tuple[Held, Va, int]:
        """This is where the pages from a number on are that an entry stands for."""
        if entry.is_value:
            return Held.MISSING if back.in_memory else Held.NOWHERE, Va(0), 0
        its = folio_of(self._memmap, back.mapping, entry)
        if its.flags & self._memmap.flags.uptodate:
            return Held.CACHE, its.page, (start - its.index) * PAGE_SIZE
        return Held.ZEROS if back.in_memory else Held.NOWHERE, Va(0), 0


def _joined(pieces: Iterator[MemoryPiece]) -> Iterator[MemoryPiece]:
    """This joins neighbours of one kind; those of the page cache only within one folio."""
    last: MemoryPiece | None = None
    for piece in pieces:
        if last is not None and last.end == piece.start and _belong(last, piece):
            last = MemoryPiece(
                last.start,
                piece.end,
                *(last.permissions, last.held, last.page, last.offset, last.reason),
            )
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _belong(first: MemoryPiece, second: MemoryPiece) -> bool:
    if (first.held, first.page, first.reason) != (second.held, second.page, second.reason):
        return False
    return first.held is not Held.CACHE or second.offset == first.offset + first.end - first.start
