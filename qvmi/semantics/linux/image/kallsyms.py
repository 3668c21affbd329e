"""Finding the kallsyms tables of the kernel that runs: by their form, or by what VMCOREINFO says.

References: Linux kernel/vmcore_info.c (since 6.0 the note names the tables of kernel/kallsyms.c).
"""

from collections.abc import Callable, Iterator
from itertools import islice
from struct import Struct
from typing import Final

from qvmi.addr import Pa, Va
from qvmi.errors import CorruptTable, MemoryFault
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.image.vmcoreinfo import VmcoreInfo, find_vmcoreinfo
from qvmi.symbols.kallsyms import KallsymsTables
from qvmi.symbols.kallsyms_fit import ImageBytes, KnownTables, complete_tables
from qvmi.symbols.kallsyms_search import search_tables

__all__ = ["FINDERS", "TableFinder", "tables_by_form", "tables_by_vmcoreinfo"]

_COUNT: Final = Struct("<I")
_MAX_PLACES: Final = 16
"""Read-only runs of the image that are searched; a kernel has one to three."""
_MAX_NOTES: Final = 16
"""Notes of this kernel that are tried; it has one, and perhaps a stale copy or a forged one."""
_MAX_COPY: Final = 128 << 20
"""Bytes of the image that are searched; a distribution's kernel has 30 to 60 MiB."""

TableFinder = Callable[[PhysicalMemory, KernelImage], KallsymsTables]
"""One way of finding kallsyms; raises CorruptTable where it does not lead there."""


def tables_by_form(memory: PhysicalMemory, image: KernelImage) -> KallsymsTables:
    """This finds kallsyms by the form of its tables in the image's read-only data.

    Raises:
        CorruptTable: there is nothing of that form.
    """
    problem: Exception | None = None
    for start, size in _likely_places(memory, image):
        try:
            return search_tables(_copy(memory, image, start, size))
        except (CorruptTable, MemoryFault) as error:
            problem = error
    raise CorruptTable("kallsyms", f"not in the image: {problem}") from problem


def tables_by_vmcoreinfo(memory: PhysicalMemory, image: KernelImage) -> KallsymsTables:
    """This finds kallsyms by the symbols of VMCOREINFO (since 6.0), searched for in RAM.

    Raises:
        CorruptTable: there is no note of this kernel, or it does not name the tables.
        MemoryFault: the memory was closed meanwhile.
    """
    problem = "no note of this kernel in RAM"
    whole: ImageBytes | None = None
    for note in islice(_notes_of(memory, image), _MAX_NOTES):
        try:
            known = _known_tables(note, memory, image)
            whole = whole or _copy(memory, image, image.start, image.end - image.start)
            return complete_tables(whole, known)
        except (CorruptTable, MemoryFault) as error:
            problem = f"the note at {note.pa or 0:#x}: {error}"
    raise CorruptTable("VMCOREINFO", problem)


def _notes_of(memory: PhysicalMemory, image: KernelImage) -> Iterator[VmcoreInfo]:
    """This iterates the notes in RAM that are of the kernel that runs, by where its text lies."""
    for note in find_vmcoreinfo(memory):
        stext = note.symbol("_stext")
        if stext is not None and image.start <= stext < image.end:
            yield note


def _likely_places(memory: PhysicalMemory, image: KernelImage) -> Iterator[tuple[Va, int]]:
    """This iterates (address, size) of where the tables may be in the image, the likeliest first.

    They are read-only data. Early in boot, and with ``rodata=off``, nothing is protected yet.
    """
    runs = image.runs(memory, writable=False, executable=False)
    yield from ((run.va, run.size) for run in islice(runs, _MAX_PLACES - 1))
    yield image.start, image.end - image.start


def _copy(memory: PhysicalMemory, image: KernelImage, start: Va, size: int) -> ImageBytes:
    """This copies a part of the image; what is cut off from a large one lies behind the tables."""
    pa = Pa(image.pa + start - image.start)
    return ImageBytes(start, memory.read(pa, min(size, _MAX_COPY)), image.start, image.end)


def _known_tables(note: VmcoreInfo, memory: PhysicalMemory, image: KernelImage) -> KnownTables:
    """This takes the tables that a note names.

    Raises:
        CorruptTable: it does not name them (before 6.0).
        MemoryFault: their number cannot be read.
    """

    def at(name: str) -> Va:
        found = note.symbol(name)
        if found is None:
            raise CorruptTable("VMCOREINFO", f"it does not name {name}")
        return found

    count = image.space(memory).read(at("kallsyms_num_syms"), _COUNT.size)
    return KnownTables(
        names=at("kallsyms_names"),
        count=_COUNT.unpack(count)[0],
        token_table=at("kallsyms_token_table"),
        token_index=at("kallsyms_token_index"),
    )


FINDERS: Final[tuple[TableFinder, ...]] = (tables_by_form, tables_by_vmcoreinfo)
"""The ways to find kallsyms, the one that costs the same for every size of guest first."""
