"""Which memory is scanned for one process, for the kernel alone, or for files that are cached."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange, Va
from qvmi.arch.paging import Extent, extents
from qvmi.errors import GuestError, TranslationFault
from qvmi.memory.stretch import Piece, Stretch
from qvmi.semantics.guest_os import Gap
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.owners.kernel_owner import own_mappings
from qvmi.semantics.linux.pages.memmap import PageUse
from qvmi.semantics.linux.pages.page_flags import Use

__all__ = ["cached_stretches", "kernel_stretches", "process_stretches"]

_MOST_OF_RAM: Final = 2
"""A space is scanned as far as it maps so many times the guest's RAM. A process may map a file more than
once; tables that lead to one page again and again would map more than can ever be scanned."""
_USER_END: Final = Va(1 << 63)
_KERNELS: Final = frozenset({Use.SLAB, Use.TABLE, Use.RESERVED, Use.KERNEL, Use.UNCOUNTED})
"""What the kernel may have; pages that are not counted may be free as well."""

Area = tuple[list[Stretch], list[Gap]]


def process_stretches(guest: LinuxGuest, pid: int) -> Area:
    """This is the memory of a process, by its addresses, as far as it is in RAM.

    Raises:
        GuestError: there is no such process.
        WalkFailed: it has no memory (kernel threads, zombies), or is gone.
    """
    process = next((one for one in guest.processes() if one.pid == pid), None)
    if process is None:
        raise GuestError(f"no process of this guest has the pid {pid}")
    space = guest.user_space(process)
    mapped = extents(space.memory.read, space.root, space.geometry, Va(0), _USER_END)
    return _virtual(mapped, space.memory.ranges)


def kernel_stretches(guest: LinuxGuest) -> Area:
    """This is the kernel's own memory: what it has mapped for itself by address, then the rest of it.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """
    memory = guest.view.memory
    stretches, gaps = _virtual(own_mappings(guest.kernel, guest.memmap), memory.ranges)
    seen = {
        (piece.pa + at) // PAGE_SIZE
        for stretch in stretches
        for piece in stretch.pieces
        for at in range(0, piece.size, PAGE_SIZE)
    }
    pages = (pa for pa, its in _uses(guest) if its.use in _KERNELS and pa // PAGE_SIZE not in seen)
    rest = [Stretch((piece,)) for piece in _runs(pages)]
    return [*stretches, *rest], gaps


def cached_stretches(guest: LinuxGuest) -> Area:
    """This is the page cache, each file by itself and in its order.

    Raises:
        SymbolsError: the profile lacks what this needs.
    """
    pages = sorted((its.mapping, its.index, pa) for pa, its in _uses(guest) if its.use is Use.FILE)
    stretches = []
    # Pages that follow each other have the same distance to their place among all.
    for _, run in groupby(enumerate(pages), key=lambda one: (one[1][0], one[1][1] - one[0])):
        stretches.append(Stretch(tuple(_runs(pa for _, (_, _, pa) in run))))
    return stretches, []


def _uses(guest: LinuxGuest) -> Iterator[tuple[Pa, PageUse]]:
    """This iterates the pages of RAM that may hold anything, with what they are used for."""
    for data in guest.view.memory.data_ranges():
        count = data.size // PAGE_SIZE
        for number, its in enumerate(guest.memmap.uses(data.start, count)):
            if its is not None:
                yield Pa(data.start + number * PAGE_SIZE), its


def _runs(pages: Iterable[Pa]) -> Iterator[Piece]:
    """This joins pages that follow each other."""
    first = behind = Pa(0)
    for pa in pages:
        if pa != behind:
            if first < behind:
                yield Piece(first, behind - first)
            first = pa
        behind = Pa(pa + PAGE_SIZE)
    if first < behind:
        yield Piece(first, behind - first)


def _virtual(mapped: Iterator[Extent], ranges: Sequence[PaRange]) -> Area:
    """These are runs of addresses that are mapped to RAM, and what is missing."""
    left = _MOST_OF_RAM * sum(ram.size for ram in ranges)
    runs: list[tuple[int, list[Piece]]] = []
    behind, why = -1, ""
    try:
        for va, piece in (one for extent in mapped for one in _in_ram(extent, ranges)):
            if left < 0:
                why = f"more than {_MOST_OF_RAM} times all RAM is mapped"
                break
            if va != behind:
                runs.append((va, []))
            runs[-1][1].append(piece)
            behind, left = va + piece.size, left - piece.size
    except TranslationFault as fault:
        why = str(fault)
    stretches = [Stretch(tuple(pieces), Va(start)) for start, pieces in runs]
    where = f"nothing behind {max(behind, 0):#x} is scanned"
    return stretches, [Gap("page tables", None, f"{where}: {why}")] if why else []


def _in_ram(extent: Extent, ranges: Iterable[PaRange]) -> Iterator[tuple[int, Piece]]:
    """This iterates the parts of an extent that are RAM, with their virtual addresses."""
    for ram in ranges:
        start, end = max(extent.pa, ram.start), min(extent.pa + extent.size, ram.end)
        if start < end:
            yield extent.va + start - extent.pa, Piece(Pa(start), end - start)
