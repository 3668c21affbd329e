"""Finding the kernel's image and page tables in memory alone, where no register tells of them.

References: Linux Documentation/admin-guide/kdump/vmcoreinfo.rst (``swapper_pg_dir``, ``phys_base``,
``pgtable_l5_enabled``); arch/x86/kernel/head_64.S (the last entry of every top-level table leads to
the image); arch/x86/realmode/init.c (``setup_real_mode``: below 1 MiB there is a table for starting
vCPUs, with the kernel's entries); arch/x86/include/asm/pgtable_types.h (``_KERNPG_TABLE``).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.arch.geometry import X86_64_4_LEVEL, X86_64_5_LEVEL, Geometry
from qvmi.errors import MemoryFault
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.linux.image.kernel_image import IMAGE_MAP_START, KernelImage, image_by_tables
from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo

__all__ = ["REAL_MODE_END", "images_by_form", "images_by_notes"]

REAL_MODE_END: Final = Pa(1 << 20)
"""Below it the kernel keeps what it starts vCPUs with, and lets no program have memory."""

_MAX_NOTES: Final = 64
"""Notes that are tried; a kernel has one and perhaps a stale copy, a program in the guest may fake more."""
_MAX_TABLES: Final = 64
"""Top-level tables that are tried, each leading elsewhere; all of a kernel's lead to one place."""
_MAX_LIKE: Final = 8
"""Tables with the same last entry of which one is taken that maps more than the image, if one does."""
_MAX_KINDS: Final = 1 << 16
"""Different last entries that are counted: pages of data look like tables once in a while."""
_CHUNK: Final = 16 << 20
"""Bytes copied at once where memory is not mapped."""
_WORDS: Final = PAGE_SIZE // 8
_LAST: Final = _WORDS - 1
_USER_WORDS: Final = _WORDS // 2
"""Entries of the half of the addresses that is the programs'."""
_TABLE_BITS: Final = 0x7FF0_0000_0000_0083
"""Of an entry: the bits between address and no-execute, and large, writable, present."""
_TABLE: Final = 0x3
"""What these are in an entry that leads to a table of the kernel's."""
_GEOMETRIES: Final = (X86_64_5_LEVEL, X86_64_4_LEVEL)
"""The second table of five levels looks like the first of four, so five are tried first."""


def images_by_notes(memory: PhysicalMemory, notes: Iterable[VmcoreInfo]) -> Iterator[KernelImage]:
    """This iterates the images that VMCOREINFO notes lead to."""
    tried: set[tuple[Pa, Geometry]] = set()
    for note in islice(notes, _MAX_NOTES):
        for root, geometry in _noted_tables(note):
            if (root, geometry) in tried:
                continue
            tried.add((root, geometry))
            image = image_by_tables(root, geometry, memory, source="VMCOREINFO")
            swapper = note.symbol("swapper_pg_dir")
            if image and swapper and image.pa + swapper - image.start == root:
                yield image


def images_by_form(memory: PhysicalMemory, end: Pa) -> Iterator[KernelImage]:
    """This iterates the images that anything below an address leads to that looks like a page table.

    Raises:
        MemoryFault: the memory was closed meanwhile.
    """
    likely = list(_likely_tables(memory, end))
    for geometry in _GEOMETRIES:
        for root in likely:
            image = image_by_tables(root, geometry, memory, source="found by its form")
            if image is not None:
                yield image


def _noted_tables(note: VmcoreInfo) -> Iterator[tuple[Pa, Geometry]]:
    """This iterates where a note says that the kernel's page tables are."""
    swapper, phys_base = note.symbol("swapper_pg_dir"), note.number("phys_base")
    if swapper is None or phys_base is None:
        return
    root = Pa(swapper - IMAGE_MAP_START + phys_base)
    if root % PAGE_SIZE or not 0 <= root <= X86_64_4_LEVEL.root_mask:
        return
    five_levels = note.number("pgtable_l5_enabled")  # since 4.17
    if five_levels is None or five_levels:
        yield root, X86_64_5_LEVEL
    if not five_levels:
        yield root, X86_64_4_LEVEL


def _likely_tables(memory: PhysicalMemory, end: Pa) -> Iterator[Pa]:
    """This iterates one table of each kind, those first whose last entry most tables share."""
    kinds: Counter[int] = Counter()
    like: dict[int, list[Pa]] = {}
    for pa, entry in _last_entries(memory, end):
        if entry not in kinds and len(kinds) >= _MAX_KINDS:
            continue
        kinds[entry] += 1
        if kinds[entry] <= _MAX_LIKE:
            like.setdefault(entry, []).append(pa)
    for entry, _ in kinds.most_common(_MAX_TABLES):
        yield next(filter(partial(_is_whole, memory), like[entry]), like[entry][0])


def _last_entries(memory: PhysicalMemory, end: Pa) -> Iterator[tuple[Pa, int]]:
    """This iterates (page, where its last word leads) of the pages for which that is in RAM."""
    for pages in _page_runs(memory, end):
        for number, word in enumerate(_last_words(memory, pages)):
            if word & _TABLE_BITS == _TABLE:
                table = word & X86_64_4_LEVEL.address_mask
                if any(ram.start <= table < ram.end for ram in memory.ranges):
                    yield Pa(pages.start + number * PAGE_SIZE), table


def _page_runs(memory: PhysicalMemory, end: Pa) -> Iterator[PaRange]:
    """This iterates runs of whole pages with data below an address, none longer than a chunk."""
    for data in memory.data_ranges():
        if data.start >= end:
            return
        start, stop = data.start + -data.start % PAGE_SIZE, min(data.end, end)
        for first in range(start, stop - PAGE_SIZE + 1, _CHUNK):
            last = min(stop - stop % PAGE_SIZE, first + _CHUNK)
            yield PaRange(Pa(first), Pa(last))


def _last_words(memory: PhysicalMemory, pages: PaRange) -> list[int]:
    """These are the last words of pages that follow each other; none of those that cannot be read."""
    for window in memory.windows:
        if window.start <= pages.start and pages.end <= window.end:
            at = pages.start - window.start + window.offset
            try:
                with memoryview(window.buffer) as whole, whole[at : at + pages.size] as part:
                    return _strided(part)
            except ValueError as error:
                raise MemoryFault(pages.start, pages.size, why=str(error)) from error
    try:
        with memoryview(memory.read(pages.start, pages.size)) as part:
            return _strided(part)
    except MemoryFault:
        return []


def _strided(data: memoryview) -> list[int]:
    with data.cast("Q") as words, words[_LAST::_WORDS] as last:
        return last.tolist()


def _is_whole(memory: PhysicalMemory, table: Pa) -> bool:
    """This tells whether a table maps more of the kernel than its image, as its map of all RAM."""
    try:
        with memoryview(memory.read(table, PAGE_SIZE)) as entries, entries.cast("Q") as words:
            return any(word & 1 for word in words[_USER_WORDS:_LAST])
    except MemoryFault:
        return False
