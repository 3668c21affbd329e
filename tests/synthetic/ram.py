"""Guest RAM that a test can write to, also between two reads of the subject."""

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence

from qvmi.addr import Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.physical import Window

__all__ = ["Ram"]


class Ram:
    """This is one run of RAM. It is a :class:`~qvmi.memory.physical.PhysicalMemory`.

    Args:
        size: in bytes.
        start: its first guest physical address.
        mapped: whether the subject may read it in place, or only through :meth:`read`.

    Attributes:
        before_read: called with the address of each read before it is done.
        reads: how many reads there were.
    """

    def __init__(self, size: int, *, start: int = 0, mapped: bool = True) -> None:
        self.start = start
        self.size = size
        self.mapped = mapped
        self.buffer = mmap.mmap(-1, size)
        self.before_read: Callable[[int], None] | None = None
        self.reads = 0

    @property
    def description(self) -> str:
        return "RAM of a test"

    @property
    def ranges(self) -> Sequence[PaRange]:
        return [PaRange(Pa(self.start), Pa(self.start + self.size))]

    @property
    def windows(self) -> Sequence[Window]:
        (run,) = self.ranges
        return [Window(run.start, run.end, self.buffer, 0)] if self.mapped else []

    def read(self, pa: Pa, size: int) -> bytes:
        self.reads += 1
        if self.before_read is not None:
            self.before_read(pa)
        at = pa - self.start
        if not 0 <= at <= at + size <= self.size:
            raise MemoryFault(pa, size, why="no RAM of the test there")
        return self.buffer[at : at + size]

    def data_ranges(self) -> Iterator[PaRange]:
        yield from self.ranges

    def close(self) -> None:
        self.buffer.close()

    def write(self, pa: int, data: bytes) -> None:
        at = pa - self.start
        self.buffer[at : at + len(data)] = data

    def write_u32(self, pa: int, value: int) -> None:
        self.write(pa, struct.pack("<I", value))

    def write_u64(self, pa: int, value: int) -> None:
        self.write(pa, struct.pack("<Q", value & (1 << 64) - 1))

    def read_u64(self, pa: int) -> int:
        value: int = struct.unpack_from("<Q", self.buffer, pa - self.start)[0]
        return value
