"""The slabs that tasks are made in: every ``task_struct`` lies in one, whatever leads to it.

References: Linux kernel/fork.c (``task_struct_cachep``), mm/slab.h (``struct slab``; of its own since
5.17, d122019bf061), include/linux/slub_def.h (``struct kmem_cache``), mm/slub.c (``new_slab``).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange, Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.pages.memmap import MemMap
from qvmi.semantics.linux.pages.page_flags import Use
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.linux.structures.record import compile_reader
from qvmi.symbols.layout import Symbols, address, field, field_offset

__all__ = ["TaskSlabs"]

_POINTER: Final = Struct("<Q")
_STEP: Final = 1 << 12
"""Frames whose structs are searched at once: those of 16 MiB of RAM, 256 KiB of structs."""
_SEARCH_S: Final = 0.5
"""Longest search of a look, but for its last step: where RAM has to be asked for, or the host has too much to
do, it is slow, and a look has other things to do. The next look goes on where it stopped."""
_FIRST_FRAMES: Final = 1 << 20
"""Frames searched at first sight, of 4 GiB of RAM: some 50 ms. What was no time for is the next look's."""
_FRAMES: Final = 1 << 16
"""Frames searched in each later look, of 256 MiB of RAM: some 3 ms, so that the search of all comes
round in a minute on a guest of 16 GiB."""
_MAX_SLABS: Final = 1 << 18
"""Slabs that are remembered; they hold some million tasks."""
_MIN_OBJECT: Final = 1 << 10
"""The smallest have 4 KiB. The type's own size tells nothing: on x86-64 it has room for registers that the
CPU may not have, and that is left out."""
_MAX_OBJECT: Final = 1 << 16
"""Bytes of a ``task_struct`` and what lies around it; the largest have 14 KiB."""
_MAX_ORDER: Final = 5
"""Of a slab; the allocator makes none larger than order 3, unless told so."""


class TaskSlabs:
    """This finds the objects of the cache of ``task_struct``.

    Slabs that were found are remembered, and each is looked at anew; new ones are searched for in a part of
    RAM at a time.

    Args:
        space: the kernel's address space.
        symbols: of the kernel.
        memmap: its memory map.
        clock: tells how long a search has taken, in seconds.

    Raises:
        SymbolsError: the profile lacks what this needs, or describes no possible layout.
    """

    def __init__(
        self,
        space: AddressSpace,
        symbols: Symbols,
        memmap: MemMap,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space = space
        self._memmap = memmap
        self._clock = clock
        self._cachep = address(symbols, "task_struct_cachep")
        self._image = address(symbols, "init_task")
        of_slab = "page" if symbols.size_of("slab") is None else "slab"
        self._slab_cache = field_offset(symbols, of_slab, "slab_cache")
        pad = symbols.find_field("kmem_cache", ("red_left_pad",))
        self._pad = None if pad is None else pad.offset
        self._size = field(symbols, "kmem_cache", "size").offset
        self._read_pointer = space.unpacker(_POINTER)
        self._read_number = space.unpacker(Struct("<I"))
        flags = field_offset(symbols, "page", "flags")
        self._read_slab = compile_reader(space, (flags, "Q"), (self._slab_cache, "Q"))
        self._known: dict[int, None] = {}
        self._steps: Iterator[PaRange] = iter(())
        self._whole = sum(ram.size for ram in space.memory.ranges) // PAGE_SIZE
        self._owed = min(_FIRST_FRAMES, self._whole)

    def objects(self) -> Iterator[int]:
        """This iterates the addresses of objects, in use or free.

        Raises:
            MemoryFault: the cache cannot be read.
            Implausible: it is none.
        """
        cache = self._read_pointer(self._cachep)[0]
        size = self._read_number(cache + self._size)[0]
        pad = 0 if self._pad is None else self._read_number(cache + self._pad)[0]
        if not _MIN_OBJECT <= size - pad <= size <= _MAX_OBJECT:
            raise Implausible(f"task_struct_cachep has objects of {size} bytes, {pad} before each")
        self._search(cache)
        for page in list(self._known):
            start = self._slab_at(page, cache)
            if start is None:
                del self._known[page]
                continue
            first, end = start
            yield from range(first + pad, end - size + pad + 1, size)

    def _slab_at(self, page: int, cache: int) -> tuple[int, int] | None:
        """This is where the slab of a ``struct page`` begins and ends; None where it is none now."""
        try:
            flags, its = self._read_slab(page)
            use = self._memmap.at(Va(page))
            order = self._memmap.order_of(Va(page), flags)
        except (MemoryFault, Implausible):
            return None
        start = self._direct(use.first)
        if its != cache or use.use is not Use.SLAB or order > _MAX_ORDER or start is None:
            return None
        return start, start + (PAGE_SIZE << order)

    def _search(self, cache: int) -> None:
        """This looks for slabs of the cache in the part of RAM whose turn it is.

        What a look has no time for is searched in the next ones, before RAM is searched anew: a host
        with too much to do makes the search late, and no part of RAM is left out.
        """
        room = max(self._owed, min(_FRAMES, self._whole))
        end = self._clock() + _SEARCH_S
        while room > 0 and len(self._known) < _MAX_SLABS:
            part = next(self._steps, None)
            if part is None:
                self._steps = _parts(self._space.memory.ranges)
                part = next(self._steps, None)
            if part is None:
                return
            self._known.update(dict.fromkeys(self._slabs_in(part, cache)))
            room -= part.size // PAGE_SIZE
            self._owed = max(0, self._owed - part.size // PAGE_SIZE)
            if self._clock() > end:
                return

    def _slabs_in(self, part: PaRange, cache: int) -> Iterator[int]:
        """This iterates the structs of pages within a part of RAM that name the cache."""
        base, size = self._memmap.page_at(part.start), self._memmap.size
        count = part.size // PAGE_SIZE
        try:
            structs = self._space.read(base, count * size)
        except MemoryFault:
            structs = self._readable(base, count * size)
        wanted = _POINTER.pack(cache)
        at = structs.find(wanted)
        while at >= 0:
            if at % size == self._slab_cache:
                yield base + at - self._slab_cache
            at = structs.find(wanted, at + 1)

    def _readable(self, start: int, size: int) -> bytes:
        """These are bytes with zeros in place of pages that are not there, as of RAM with holes."""
        found = bytearray()
        while len(found) < size:
            here = start + len(found)
            step = min(PAGE_SIZE - here % PAGE_SIZE, size - len(found))
            try:
                found += self._space.read(Va(here), step)
            except MemoryFault:
                found += bytes(step)
        return bytes(found)

    def _direct(self, pa: Pa) -> int | None:
        """This is where the kernel's map of all RAM has an address."""
        for run in self._space.linear:
            if run.start <= self._image < run.end:
                continue  # RAM that the image gave back is known by its other address
            if run.pa <= pa < run.pa + run.end - run.start:
                return run.start + pa - run.pa
        return None


def _parts(ranges: Sequence[PaRange]) -> Iterator[PaRange]:
    """This iterates RAM in parts that are searched at once."""
    for ram in ranges:
        for start in range(ram.start, ram.end, _STEP * PAGE_SIZE):
            yield PaRange(Pa(start), Pa(min(start + _STEP * PAGE_SIZE, ram.end)))
