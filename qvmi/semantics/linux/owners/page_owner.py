"""Whose a piece of physical memory is: processes that map it, a file that it caches, or the kernel."""

from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import islice
from typing import Final, TypeVar

from qvmi.addr import PAGE_SIZE, Pa
from qvmi.errors import MemoryFault, WalkFailed
from qvmi.semantics.guest_os import Gap, GuestOS, Listing
from qvmi.semantics.linux.fs.d_path import Paths
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.modules.module_memory import ModuleMemory, ModulePart
from qvmi.semantics.linux.owners.kernel_owner import KernelOwners
from qvmi.semantics.linux.owners.page_file import PageFiles
from qvmi.semantics.linux.owners.reverse_map import ReverseMap
from qvmi.semantics.linux.pages.memmap import MemMap, PageUse
from qvmi.semantics.linux.pages.page_flags import Use
from qvmi.semantics.linux.structures.effort import Effort, Spent
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.rows.scan import Owner

__all__ = ["PageOwners"]

Row = TypeVar("Row")

_MAX_OWNERS: Final = 64
"""Processes that are told of one page: those of a library that everybody uses are many hundred."""
_STEPS: Final = 1 << 20
"""Areas of memory that are looked at for all pages asked about: a page has a handful, or one in each
process; each costs a walk of page tables, which makes some ten seconds of a guest that lies."""


class PageOwners:
    """This tells whose pages of one guest are, as it is while this is asked.

    Args:
        guest: what is asked for processes, threads, modules and mounts, at most once each.
        kernel: the kernel.
        memmap: its memory map.
        paths: names its files.

    Attributes:
        gaps: what could not be looked at.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(self, guest: GuestOS, kernel: Kernel, memmap: MemMap, paths: Paths) -> None:
        self._guest = guest
        self._memmap = memmap
        self._space, self._symbols = kernel.space, kernel.symbols
        self._memory = ModuleMemory(kernel.space, kernel.symbols)
        self._mappers = ReverseMap(
            kernel.space, kernel.symbols, lambda: self._listed(guest.processes)
        )
        self._paths = paths
        self._kernel = KernelOwners(
            kernel,
            memmap,
            modules=self._module_parts,
            threads=lambda: self._listed(guest.threads),
        )
        self._gaps: list[Gap] = []
        self._effort = Effort(_STEPS)

    @cached_property
    def _files(self) -> PageFiles:
        return PageFiles(
            self._space,
            self._symbols,
            paths=self._paths,
            mounts=lambda: self._listed(self._guest.mounts),
        )

    @property
    def gaps(self) -> list[Gap]:
        """These are what could not be looked at."""
        return [*self._gaps, *self._mappers.gaps, *self._files.gaps, *self._kernel.gaps]

    def of(self, pa: Pa) -> tuple[Owner, ...]:
        """This tells who has the page of a physical address, and where they have that address.

        Returns:
            Nothing where nobody can tell, which is a gap then.
        """
        try:
            its = self._memmap.use_of(pa)
            if its.use not in {Use.FILE, Use.ANONYMOUS}:
                return (self._kernel.of(pa, its),)
            return tuple(self._owners(pa, its))
        except (MemoryFault, Implausible, Spent) as error:
            self._gaps.append(Gap("struct page", self._memmap.page_at(pa), str(error)))
            return ()

    def _owners(self, pa: Pa, its: PageUse) -> Iterator[Owner]:
        """These are the owners of a page that programs may map."""
        if its.use is Use.FILE:
            name = self._files.name_of(its.mapping, self._effort)
            yield Owner("page cache", name, offset=its.index * PAGE_SIZE + pa % PAGE_SIZE)
        count = 0
        for mapper in islice(self._mappers.mappers(pa, its, self._effort), _MAX_OWNERS):
            count += 1
            yield Owner("process", mapper.process.name, mapper.process.pid, mapper.address)
        if not count and its.use is Use.ANONYMOUS:
            yield Owner("anonymous")  # of a process that ends, or only in the swap cache

    def _module_parts(self) -> list[tuple[ModulePart, str]]:
        found = []
        for module in self._listed(self._guest.modules):
            try:
                parts = self._memory.parts(module.struct_address)
            except MemoryFault:
                continue  # it was unloaded since it was listed
            found += [(part, module.name) for part in parts]
        return found

    def _listed(self, ask: Callable[[], Listing[Row]]) -> list[Row]:
        """This is a listing, whose gaps are those of this too."""
        try:
            listing = ask()
        except WalkFailed as error:
            self._gaps.append(Gap(error.structure, None, error.problem))
            return []
        self._gaps += listing.gaps
        return list(listing.items)
