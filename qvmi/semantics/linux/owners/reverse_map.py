"""Which processes have a page: from the page by its mapping to all who map it, as the kernel does.

References: Linux mm/rmap.c (``rmap_walk_anon``, ``rmap_walk_file``), mm/interval_tree.c,
include/linux/rmap.h (``struct anon_vma``, ``struct anon_vma_chain``), include/linux/fs.h
(``address_space.i_mmap``).
"""

from collections.abc import Callable, Iterator
from struct import Struct
from typing import Final, NamedTuple

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.guest_os import Gap, Process
from qvmi.semantics.linux.pages.memmap import PageUse
from qvmi.semantics.linux.pages.page_flags import Use
from qvmi.semantics.linux.structures.effort import Effort
from qvmi.semantics.linux.structures.rbtree import RbTree
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.linux.tasks.mm import space_of
from qvmi.symbols.layout import Symbols, field_offset

__all__ = ["Mapper", "ReverseMap"]

_POINTER: Final = Struct("<Q")
_PAGE_SHIFT: Final = 12
_ADDRESSES: Final = 1 << 64
_MAX_GAPS: Final = 1000


class Mapper(NamedTuple):
    """This is a process that maps a page, and where."""

    process: Process
    address: Va


class _Vma(NamedTuple):
    """These are the members of a ``vm_area_struct`` that say which page it maps where."""

    start: int
    end: int
    mm: int
    first: int


class ReverseMap:
    """This finds the processes that map pages of one kernel.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        processes: those that there are.

    Attributes:
        gaps: what could not be looked at.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(
        self, space: AddressSpace, symbols: Symbols, processes: Callable[[], list[Process]]
    ) -> None:
        self._space = space
        self._trees = RbTree(space, symbols)
        self._read_pointer = space.unpacker(_POINTER)
        self._read_vma = compile_reader(
            space,
            (field_offset(symbols, "vm_area_struct", "vm_start"), "Q"),
            (field_offset(symbols, "vm_area_struct", "vm_end"), "Q"),
            (field_offset(symbols, "vm_area_struct", "vm_mm"), "Q"),
            (field_offset(symbols, "vm_area_struct", "vm_pgoff"), "Q"),
        )
        self._offsets = _Offsets.of(symbols)
        self._processes = processes
        self._of_mm: dict[int, list[Process]] | None = None
        self._spaces: dict[int, AddressSpace | None] = {}
        self._vmas: dict[int, list[int]] = {}
        self.gaps: list[Gap] = []

    def mappers(self, pa: Pa, its: PageUse, effort: Effort) -> Iterator[Mapper]:
        """This iterates who maps the page of a physical address; the page tables confirm each.

        Raises:
            Spent: enough was looked at.
        """
        for vma in self._vmas_of(its, effort):
            effort.spend(1)
            try:
                start, end, mm, first = self._read_vma(vma)
            except MemoryFault as fault:
                self._gap(vma, str(fault))
                continue
            va = start + (its.index - first << _PAGE_SHIFT)
            if start <= va < end and self._maps(mm, va, pa):
                for process in self._owners(mm):
                    yield Mapper(process, Va(va + pa % PAGE_SIZE))

    def _vmas_of(self, its: PageUse, effort: Effort) -> list[int]:
        """These are the areas of memory that a page may be mapped in."""
        if not its.mapping:
            return []
        known = self._vmas.get(its.mapping)
        if known is not None:
            return known
        offsets = self._offsets
        anonymous = its.use is Use.ANONYMOUS
        found: list[int] = []
        try:
            root = self._read_pointer(its.mapping + offsets.root[its.use])[0]
            nodes, gaps = self._trees.nodes(root, _TREES[its.use], effort)
            self.gaps += gaps[: _MAX_GAPS - len(self.gaps)]
            for node in nodes:
                base = node - offsets.node[its.use]
                found.append(self._read_pointer(base + offsets.vma)[0] if anonymous else base)
        except MemoryFault as fault:
            self._gap(its.mapping, str(fault))
        self._vmas[its.mapping] = found
        return found

    def _maps(self, mm: int, va: int, pa: Pa) -> bool:
        """This tells whether a process's page tables lead from an address to that page."""
        if mm not in self._spaces:
            try:
                pgd = self._read_pointer(mm + self._offsets.pgd)[0]
                self._spaces[mm] = space_of(self._space, Va(pgd))
            except MemoryFault as fault:
                self._gap(mm, str(fault))
                self._spaces[mm] = None
        space = self._spaces[mm]
        try:
            return space is not None and space.translate(Va(va)) >> _PAGE_SHIFT == pa >> _PAGE_SHIFT
        except MemoryFault:
            return (
                False  # it was there, and was given back or swapped out, or another was made of it
            )

    def _owners(self, mm: int) -> list[Process]:
        """These are the processes whose memory it is: several after a ``vfork``."""
        if self._of_mm is None:
            self._of_mm = {}
            for process in self._processes():
                try:
                    its = self._read_pointer(process.address + self._offsets.mm)[0]
                except MemoryFault:
                    continue  # it has ended since it was listed
                self._of_mm.setdefault(its, []).append(process)
        return self._of_mm.get(mm, [])

    def _gap(self, address: int, why: str) -> None:
        if len(self.gaps) < _MAX_GAPS:
            self.gaps.append(Gap("reverse map", Va(address % _ADDRESSES), why))


_TREES: Final = {Use.ANONYMOUS: "anon_vma.rb_root", Use.FILE: "address_space.i_mmap"}


class _Offsets(NamedTuple):
    """This is where the members lie that the map is followed by.

    Args:
        root: of the tree of those who map it, in what ``page.mapping`` leads to.
        node: of the tree's nodes, in what is in the tree.
        vma: in an ``anon_vma_chain``.
        mm: in a ``task_struct``.
        pgd: in a ``mm_struct``.
    """

    root: dict[Use, int]
    node: dict[Use, int]
    vma: int
    mm: int
    pgd: int

    @classmethod
    def of(cls, symbols: Symbols) -> "_Offsets":
        """This looks all members up.

        Raises:
            LayoutNotFound: the kernel's types lack one of them.
        """

        def at(name: str, *members: str) -> int:
            return field_offset(symbols, name, *members)

        # The root of a tree begins with the pointer to its topmost node.
        return cls(
            {Use.ANONYMOUS: at("anon_vma", "rb_root"), Use.FILE: at("address_space", "i_mmap")},
            {Use.ANONYMOUS: at("anon_vma_chain", "rb"), Use.FILE: at("vm_area_struct", "shared")},
            at("anon_vma_chain", "vma"),
            at("task_struct", "mm"),
            at("mm_struct", "pgd"),
        )
