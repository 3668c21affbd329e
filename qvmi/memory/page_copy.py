"""Pages of guest memory: which ones a walk reads, and a copy of them from one moment."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.physical import PhysicalMemory, Window

__all__ = ["PageCopy", "RecordedMemory"]

_MAX_RUN: Final = 1 << 20
"""Pages of a run that is copied at once: 4 GiB, more than a walk reads."""


class RecordedMemory:
    """This is another memory, with a note of which pages were read.

    Args:
        memory: what is read.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.pages: set[int] = set()
        self.description = f"recorded {memory.description}"
        self.ranges: Sequence[PaRange] = memory.ranges
        self.windows: Sequence[Window] = ()

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: as the memory behind it.
        """
        data = self._memory.read(pa, size)
        self.pages.update(_pages(pa, size))
        return data

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates what may hold other bytes than zero; that alone reads nothing."""
        return self._memory.data_ranges()

    def close(self) -> None:
        """This leaves the memory to its owner."""


class PageCopy:
    """This is a copy of some pages; others are read from the memory behind it, and noted as missing.

    An answer that was read with a page missing is a mixture of two moments and must not be used.

    Args:
        memory: what is copied.
        pages: numbers of the pages, in any order.

    Raises:
        MemoryFault: one of them cannot be read any more.
    """

    def __init__(self, memory: PhysicalMemory, pages: Iterable[int]) -> None:
        self._memory = memory
        self._runs: dict[int, tuple[int, bytes]] = {}
        self.missing: set[int] = set()
        self.description = f"copy of {memory.description}"
        self.ranges: Sequence[PaRange] = memory.ranges
        self.windows: Sequence[Window] = ()
        for first, count in _runs(pages):
            data = memory.read(Pa(first * PAGE_SIZE), count * PAGE_SIZE)
            self._runs.update(dict.fromkeys(range(first, first + count), (first, data)))

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: as the memory behind it.
        """
        first, data = self._runs.get(pa // PAGE_SIZE, (0, b""))
        start = pa - first * PAGE_SIZE
        if 0 <= size <= len(data) - start:
            return data[start : start + size]
        if size < 0:
            raise MemoryFault(pa, size, why="a size below zero")
        missing = {page for page in _pages(pa, size) if page not in self._runs}
        if missing:
            live = self._memory.read(pa, size)
            self.missing |= missing
            return live
        return b"".join(self._parts(pa, size))

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates what may hold other bytes than zero, in the memory behind it."""
        return self._memory.data_ranges()

    def close(self) -> None:
        """This leaves the memory to its owner."""

    def _parts(self, pa: Pa, size: int) -> Iterator[bytes]:
        """This iterates what lies in one run after the other."""
        end = pa + size
        while pa < end:
            first, data = self._runs[pa // PAGE_SIZE]
            start = pa - first * PAGE_SIZE
            part = data[start : start + end - pa]
            yield part
            pa = Pa(pa + len(part))


def _pages(pa: int, size: int) -> range:
    """These are the numbers of the pages that hold a range."""
    return range(pa // PAGE_SIZE, (pa + max(size, 1) - 1) // PAGE_SIZE + 1)


def _runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """This iterates (first page, number of pages) of pages that follow each other."""
    for _, run in groupby(enumerate(sorted(set(pages))), lambda item: item[1] - item[0]):
        numbers = list(map(itemgetter(1), run))
        for at in range(0, len(numbers), _MAX_RUN):
            yield numbers[at], min(len(numbers) - at, _MAX_RUN)
