"""The guest's physical memory as every source of it is seen: exact reads, or a fault."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from mmap import mmap
from typing import Protocol

from qvmi.addr import Pa, PaRange

__all__ = ["PhysicalMemory", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """This is a run of guest RAM that is mapped into this process, for reads without a copy.

    The byte at guest physical address ``pa`` of [start, end) is ``buffer[pa - start + offset]``.

    Args:
        start: first guest physical address.
        end: first guest physical address behind the run.
        buffer: the read-only mapping.
        offset: index of ``start`` in the buffer, in bytes.
    """

    start: Pa
    end: Pa
    buffer: mmap
    offset: int


class PhysicalMemory(Protocol):
    """This reads guest physical memory.

    Every implementation passes ``tests/contract/test_physical_memory.py``.
    """

    @property
    def description(self) -> str:
        """This says in a few words how the bytes are read, such as ``mapped RAM file /run/vm/ram``."""
        ...

    @property
    def ranges(self) -> Sequence[PaRange]:
        """These are the guest's RAM ranges in rising order, neither touching nor overlapping."""
        ...

    @property
    def windows(self) -> Sequence[Window]:
        """These are the runs that are mapped into this process; empty where reads need a copy."""
        ...

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes at ``pa``.

        Raises:
            MemoryFault: part of the range is no RAM, or the source failed; nothing is returned.
            NotDirect: the source has to ask, and this is the thread that would have to answer.
            QvmiError: a source that has to ask got no answer, as MachineGone.
        """
        ...

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates the ranges that may hold bytes other than zero, in rising order.

        Memory that the guest never touched is left out where the source can tell (holes of the
        RAM file); reading it would make the host allocate it.
        """
        ...

    def close(self) -> None:
        """This releases the source; later reads raise MemoryFault."""
        ...
