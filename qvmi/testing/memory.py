"""Guest memory that holds the bytes it is given."""

import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault, UsageError
from qvmi.memory.physical import Window
from qvmi.testing.faults import Faults

__all__ = ["FakeMemory", "MemoryRead"]


@dataclass(frozen=True, slots=True)
class MemoryRead:
    """This is one call of :meth:`FakeMemory.read`."""

    pa: Pa
    size: int


class FakeMemory:
    """This is guest memory that holds the bytes it is given.

    It is a :class:`~qvmi.memory.physical.PhysicalMemory`.

    Args:
        runs: bytes by the guest physical address they begin at.
        mapped: whether there are windows, as with a mapped RAM file, or reads only.

    Attributes:
        reads: the reads, in order, also those that failed.

    Raises:
        UsageError: runs overlap.
    """

    def __init__(self, runs: Mapping[Pa, bytes], *, mapped: bool = False) -> None:
        self.reads: list[MemoryRead] = []
        self._runs = _merged(runs)
        self._faults = Faults(("read",))
        self._windows = tuple(_window(pa, data) for pa, data in self._runs.items() if mapped)

    @property
    def description(self) -> str:
        """This says that the bytes are made up."""
        return "bytes of a test"

    @property
    def ranges(self) -> Sequence[PaRange]:
        """These are the runs, those that touch joined."""
        return [PaRange(pa, Pa(pa + len(data))) for pa, data in self._runs.items()]

    @property
    def windows(self) -> Sequence[Window]:
        """These are read-only mappings of the runs, if there are to be any."""
        return self._windows

    def fail_next(self, error: MemoryFault) -> None:
        """This makes the next read raise the error; several wait for their turn."""
        self._faults.arm("read", error)

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes; MemoryFault where there are none."""
        self.reads.append(MemoryRead(pa, size))
        self._faults.go_off("read")
        for start, data in self._runs.items():
            if start <= pa < start + len(data) and size >= 0:
                found = data[pa - start : pa - start + size]
                if len(found) < size:
                    raise MemoryFault(pa + len(found), size, why="no RAM")
                return found
        raise MemoryFault(pa, size, why="no RAM")

    def data_ranges(self) -> Iterator[PaRange]:
        """These are the runs without those of their pages that hold nothing but zeros."""
        for start, data in self._runs.items():
            yield from _nonzero(start, data)

    def close(self) -> None:
        """This lets go of the bytes; later reads raise MemoryFault."""
        self._runs = {}
        for window in self._windows:
            window.buffer.close()
        self._windows = ()


def _merged(runs: Mapping[Pa, bytes]) -> dict[Pa, bytes]:
    """These are the runs in rising order, those that touch joined."""
    merged: dict[Pa, bytes] = {}
    start, end = Pa(0), -1
    for pa, data in sorted(runs.items()):
        if pa < end:
            raise UsageError(f"runs overlap at {pa:#x}")
        if pa > end:
            start = pa
        merged[start] = merged.get(start, b"") + data
        end = pa + len(data)
    return {pa: data for pa, data in merged.items() if data}


def _window(pa: Pa, data: bytes) -> Window:
    file = os.memfd_create("qvmi-fake-memory", os.MFD_CLOEXEC)
    try:
        os.truncate(file, len(data))
        with mmap.mmap(file, len(data)) as writable:
            writable[:] = data
        buffer = mmap.mmap(file, len(data), access=mmap.ACCESS_READ)
    finally:
        os.close(file)
    return Window(start=pa, end=Pa(pa + len(data)), buffer=buffer, offset=0)


def _nonzero(start: Pa, data: bytes) -> Iterator[PaRange]:
    """These are the parts of a run, in whole pages where it has whole ones, that are not all zero."""
    first: int | None = None
    position = 0
    while position < len(data):
        step = PAGE_SIZE - (start + position) % PAGE_SIZE
        if any(data[position : position + step]):
            first = position if first is None else first
        elif first is not None:
            yield PaRange(Pa(start + first), Pa(start + position))
            first = None
        position += step
    if first is not None:
        yield PaRange(Pa(start + first), Pa(start + len(data)))
