"""What of the kernel's a page is: image, module, slab, stack, or memory that it mapped for itself.

References: Linux mm/slab.h (``struct slab``), include/linux/slub_def.h (``struct kmem_cache``),
include/linux/sched/task_stack.h; slabs have a struct of their own since 5.17 (d122019bf061).
"""

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange, Va
from qvmi.arch.paging import Extent, extents
from qvmi.errors import MemoryFault, TranslationFault
from qvmi.semantics.guest_os import Gap, Thread
from qvmi.semantics.linux.fs.d_path import text_of
from qvmi.semantics.linux.kernel.discovery import Kernel
from qvmi.semantics.linux.modules.module_memory import ModulePart
from qvmi.semantics.linux.pages.memmap import MemMap, PageUse
from qvmi.semantics.linux.pages.page_flags import Use
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.semantics.rows.scan import Owner
from qvmi.symbols.layout import field_offset

__all__ = ["KernelOwners", "own_mappings"]

_POINTER: Final = Struct("<Q")
_KERNEL_HALF: Final = 1 << 63
_ADDRESSES: Final = 1 << 64
_STACK_SIZE: Final = 16 << 10
"""``THREAD_SIZE`` of x86-64 and of aarch64 with pages of 4 KiB."""
_MAX_NAME: Final = 64
"""Bytes of a slab cache's name."""
_MAX_OBJECT: Final = 1 << 23
"""Bytes of an object in a slab; a larger one is a lie."""
_MAX_PAGES: Final = 1 << 22
"""Pages that the kernel has mapped for itself: 16 GiB; distributions' have some thousand."""
_NAMES: Final = {
    Use.FREE: "free",
    Use.TABLE: "page table",
    Use.RESERVED: "reserved",
    Use.OFFLINE: "offline",
    Use.UNCOUNTED: "free or kernel",
}


def own_mappings(kernel: Kernel, memmap: MemMap | None) -> Iterator[Extent]:
    """This iterates what the kernel has mapped beside its image and its map of all RAM, by address.

    Args:
        kernel: the kernel.
        memmap: its memory map, which is left out.

    Raises:
        TranslationFault: half of the page tables are more than can be read.
    """
    space = kernel.space
    here = Va(_KERNEL_HALF)
    for start, end in sorted(_left_out(kernel, memmap)):
        if here < start:
            yield from extents(space.memory.read, space.root, space.geometry, here, Va(start))
        here = Va(max(here, end))
    yield from extents(space.memory.read, space.root, space.geometry, here, Va(_ADDRESSES))


def _left_out(kernel: Kernel, memmap: MemMap | None) -> Iterator[tuple[int, int]]:
    for run in kernel.space.linear:
        yield run.start, run.end
    if memmap is not None:
        for ram in kernel.space.memory.ranges:
            yield memmap.page_at(ram.start), memmap.page_at(Pa(ram.end - 1)) + memmap.size


class KernelOwners:
    """This tells what pages of one kernel are.

    Args:
        kernel: the kernel.
        memmap: its memory map.
        modules: gives the parts of its modules, with their names.
        threads: gives its threads.

    Attributes:
        gaps: what could not be looked at.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """

    def __init__(
        self,
        kernel: Kernel,
        memmap: MemMap,
        *,
        modules: Callable[[], list[tuple[ModulePart, str]]],
        threads: Callable[[], Iterable[Thread]],
    ) -> None:
        self._kernel = kernel
        self._memmap = memmap
        self._modules = modules
        self._threads = threads
        self._parts: list[tuple[ModulePart, str]] | None = None
        self._mapped: dict[int, int] | None = None
        self._stacks: dict[int, Thread] | None = None
        symbols = kernel.symbols
        self._stack = field_offset(symbols, "task_struct", "stack")
        self._read_pointer = kernel.space.unpacker(_POINTER)
        of_slab = "page" if symbols.size_of("slab") is None else "slab"
        self._slab_cache = field_offset(symbols, of_slab, "slab_cache")
        self._read_cache = compile_reader(
            kernel.space,
            (field_offset(symbols, "kmem_cache", "size"), "I"),
            (field_offset(symbols, "kmem_cache", "name"), "Q"),
        )
        self.gaps: list[Gap] = []

    def of(self, pa: Pa, its: PageUse) -> Owner:
        """This tells what the page of a physical address is, which is neither programs' nor a file's."""
        if its.use is Use.SLAB:
            return self._in_slab(pa, its)
        if its.use in {Use.FREE, Use.TABLE, Use.OFFLINE}:
            return Owner(_NAMES[its.use])
        image = self._kernel.image
        if 0 <= pa - image.pa < image.end - image.start and its.use is Use.RESERVED:
            return self._in_image(Va(image.start + pa - image.pa))
        return self._mapped_owner(pa) or Owner(
            _NAMES.get(its.use, "kernel page"), address=self._direct(pa)
        )

    def _in_image(self, va: Va) -> Owner:
        nearest = self._kernel.symbols.nearest(va)
        if nearest is None:
            return Owner("kernel", address=va)
        return Owner("kernel", text_of(nearest.name.encode()), None, va, va - nearest.address)

    def _in_slab(self, pa: Pa, its: PageUse) -> Owner:
        try:
            size, name = self._read_cache(self._read_pointer(its.page + self._slab_cache)[0])
            text = text_of(self._kernel.space.read_string(Va(name), _MAX_NAME))
        except MemoryFault as fault:
            self.gaps.append(Gap("slab.slab_cache", its.page, str(fault)))
            return Owner("slab", address=self._direct(pa))
        within = (pa - its.first) % size if 0 < size < _MAX_OBJECT else 0
        return Owner("slab", text, None, self._direct(Pa(pa - within)), within)

    def _mapped_owner(self, pa: Pa) -> Owner | None:
        """This tells what a page is by where the kernel has mapped it, if it is mapped for itself."""
        if self._mapped is None:
            self._mapped = self._own_pages()
        va = self._mapped.get(pa // PAGE_SIZE)
        where = self._direct(pa) if va is None else Va(va + pa % PAGE_SIZE)
        if where is None:
            return None
        thread = self._thread_at(where)
        if thread is not None:
            return Owner("stack", thread.name, thread.pid, where)
        if va is None:
            return None
        if self._parts is None:
            self._parts = self._modules()
        for part, name in self._parts:
            if part.start <= where < part.end:
                return Owner("module", name, None, where, where - part.start)
        return Owner("vmalloc", address=where)

    def _thread_at(self, va: Va) -> Thread | None:
        """This is the thread that has its stack of the kernel's there."""
        if self._stacks is None:
            self._stacks = {}
            for thread in self._threads():
                try:
                    start = self._read_pointer(thread.address + self._stack)[0]
                except MemoryFault:
                    continue  # it has ended since it was listed
                pages = range(start, start + _STACK_SIZE, PAGE_SIZE)
                self._stacks.update((page // PAGE_SIZE, thread) for page in pages)
        return self._stacks.get(va // PAGE_SIZE)

    def _own_pages(self) -> dict[int, int]:
        """These are the pages that the kernel has mapped for itself: address by number of the frame."""
        pages: dict[int, int] = {}
        try:
            for extent in own_mappings(self._kernel, self._memmap):
                size = min(extent.size, (_MAX_PAGES - len(pages)) * PAGE_SIZE)
                if not any(_is_ram(extent.pa, ram) for ram in self._kernel.space.memory.ranges):
                    continue
                first = extent.pa // PAGE_SIZE
                pages.update(
                    (first + at // PAGE_SIZE, extent.va + at) for at in range(0, size, PAGE_SIZE)
                )
        except TranslationFault as fault:
            self.gaps.append(Gap("the kernel's page tables", None, str(fault)))
        return pages

    def _direct(self, pa: Pa) -> Va | None:
        """This is where the kernel's map of all RAM has an address."""
        for run in self._kernel.space.linear:
            if (
                run.start != self._kernel.image.start
                and run.pa <= pa < run.pa + run.end - run.start
            ):
                return Va(run.start + pa - run.pa)
        return None


def _is_ram(pa: Pa, ram: PaRange) -> bool:
    return ram.start <= pa < ram.end
