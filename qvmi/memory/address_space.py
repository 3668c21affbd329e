"""A virtual address space: physical memory seen through a page-table root, with proven shortcuts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch import paging
from qvmi.errors import MemoryFault
from qvmi.memory.physical import PhysicalMemory

__all__ = ["AddressSpace", "LinearRange"]

STRING_CHUNK: Final = 256
"""Bytes read at once while the end of a string is looked for: most kernel strings are shorter."""


@dataclass(frozen=True, slots=True)
class LinearRange:
    """This is a run of virtual addresses that maps to physical ones by one sum.

    The kernel's image and its direct map of all RAM are such runs; whoever adds one has checked in
    the page tables where it leads. Pages that the kernel took out of such a run are read all the
    same; :meth:`AddressSpace.walk` tells whether one is mapped.

    Args:
        start: first virtual address.
        end: first virtual address behind it.
        pa: the physical address of ``start``.
    """

    start: Va
    end: Va
    pa: Pa


class AddressSpace:
    """This reads virtual memory: of the kernel, or of one process.

    Args:
        memory: the guest's physical memory.
        root: physical address of the top-level page table.
        geometry: which levels there are.
        linear: runs that are translated by a sum instead of a walk.
    """

    __slots__ = ("_linear", "_mapped", "geometry", "memory", "root")

    def __init__(
        self,
        memory: PhysicalMemory,
        root: Pa,
        *,
        geometry: paging.Geometry,
        linear: Sequence[LinearRange] = (),
    ) -> None:
        self.memory = memory
        self.root = root
        self.geometry = geometry
        self._linear = tuple(linear)
        self._mapped = tuple(_mapped_runs(memory, self._linear))

    @property
    def linear(self) -> Sequence[LinearRange]:
        """These are the runs that are translated by a sum."""
        return self._linear

    def walk(self, va: Va) -> paging.Translation:
        """This translates by the page tables alone and keeps the steps.

        Raises:
            TranslationFault: the address is not mapped; it says at which level.
        """
        return paging.walk(self.memory.read, self.root, self.geometry, va)

    def translate(self, va: Va) -> Pa:
        """This gives the physical address of a virtual one.

        Raises:
            TranslationFault: the address is not mapped; it says at which level.
        """
        for run in self._linear:
            if run.start <= va < run.end:
                return Pa(run.pa + va - run.start)
        return paging.translate(self.memory.read, self.root, self.geometry, va)

    def read(self, va: Va, size: int) -> bytes:
        """This reads exactly ``size`` bytes, across pages where need be.

        Raises:
            MemoryFault: a page of the range is not mapped, or is no RAM.
        """
        for run in self._linear:
            if run.start <= va <= va + size <= run.end:
                return self.memory.read(Pa(run.pa + va - run.start), size)
        if size < 0:
            raise MemoryFault(va, size, kind="virtual", why="a size below zero")
        parts: list[bytes] = []
        end = va + size
        while va < end:
            part = min(end, (va | (PAGE_SIZE - 1)) + 1) - va
            parts.append(self.memory.read(self.translate(va), part))
            va = Va(va + part)
        return b"".join(parts)

    def read_string(self, va: Va, limit: int) -> bytes:
        """This reads a NUL-terminated string without its NUL.

        Args:
            va: of its first byte.
            limit: most bytes to look at.

        Raises:
            MemoryFault: a page before the NUL cannot be read, or there is no NUL within the limit.
        """
        found = bytearray()
        while len(found) < limit:
            here = Va(va + len(found))
            to_page_end = PAGE_SIZE - here % PAGE_SIZE
            chunk = self.read(here, min(STRING_CHUNK, to_page_end, limit - len(found)))
            end = chunk.find(0)
            found += chunk if end < 0 else chunk[:end]
            if end >= 0:
                return bytes(found)
        raise MemoryFault(va, limit, kind="virtual", why="no end of the string within the limit")

    def unpacker(self, layout: Struct) -> Callable[[int], tuple[Any, ...]]:
        """This makes the fastest reader there is for one struct layout.

        The reader takes a virtual address, not yet wrapped as Va, and returns the layout's values;
        it raises MemoryFault, also once the memory was closed. Where RAM is mapped it reads in
        place, without a copy.
        """
        size = layout.size
        unpack_from, unpack, read = layout.unpack_from, layout.unpack, self.read
        runs = [(start, end - size, buffer, delta) for start, end, buffer, delta in self._mapped]
        # Nearly everything lies in the largest run, the direct map of RAM above the first MiB.
        runs.sort(key=lambda run: run[0] - run[1])
        most, *others = runs or [(0, -1, b"", 0)]
        start, last, buffer, delta = most

        def unpack_elsewhere(va: int) -> tuple[Any, ...]:
            for start, last, buffer, delta in others:
                if start <= va <= last:
                    return unpack_from(buffer, va + delta)
            return unpack(read(Va(va), size))

        def unpack_at(va: int) -> tuple[Any, ...]:
            try:
                if start <= va <= last:
                    return unpack_from(buffer, va + delta)
                return unpack_elsewhere(va)
            except ValueError as error:
                raise MemoryFault(va, size, kind="virtual", why=str(error)) from error

        return unpack_at

    def with_linear(self, linear: Sequence[LinearRange]) -> "AddressSpace":
        """This is the same space with other shortcuts."""
        return AddressSpace(self.memory, self.root, geometry=self.geometry, linear=linear)

    def over(self, memory: PhysicalMemory) -> "AddressSpace":
        """This is the same space over another memory, such as a copy of this one."""
        return AddressSpace(memory, self.root, geometry=self.geometry, linear=self._linear)


def _mapped_runs(
    memory: PhysicalMemory, linear: Sequence[LinearRange]
) -> Iterator[tuple[int, int, Any, int]]:
    """This iterates (first va, end va, buffer, index of va 0) for linear runs in mapped RAM."""
    for run in linear:
        to_pa = run.pa - run.start
        for window in memory.windows:
            start = max(run.start, window.start - to_pa)
            end = min(run.end, window.end - to_pa)
            if start < end:
                yield start, end, window.buffer, to_pa - window.start + window.offset
