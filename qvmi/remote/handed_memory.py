"""Guest RAM that is handed from one process to another: open files, and where in them its runs lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import msgspec

from qvmi.addr import Pa, PaRange
from qvmi.errors import BadMessage, NotDirect
from qvmi.memory.mapped_ram import MappedRam, RamFile
from qvmi.memory.physical import PhysicalMemory

__all__ = ["HandedMemory", "RamRun"]


class RamRun(msgspec.Struct, frozen=True):
    """This is a run of guest RAM.

    Args:
        start: first guest physical address.
        end: first guest physical address behind it.
        file: which of the files holds it, by its place among them.
        offset: of its first byte in the file, in bytes.
    """

    start: Pa
    end: Pa
    file: int
    offset: int


class HandedMemory(msgspec.Struct, frozen=True):
    """This is where the RAM lies in the files that are handed over with it."""

    runs: tuple[RamRun, ...]

    @classmethod
    def of(cls, memory: PhysicalMemory) -> tuple[Self, tuple[int, ...]]:
        """This describes a memory, and names its files, open for reading alone, which stay its own.

        Raises:
            NotDirect: it is not in files that could be handed over.
            MemoryFault: it was closed.
        """
        if not isinstance(memory, MappedRam):
            raise NotDirect(
                f"a codepack in a process of its own reads RAM that QEMU shares, and this is"
                f" {memory.description}: start QEMU with"
                " -object memory-backend-memfd,id=ram0,size=…,share=on -machine …,memory-backend=ram0"
            )
        descriptors = memory.descriptors
        runs: list[RamRun] = []
        for one in memory.ranges:
            start = one.start
            for descriptor, offset, size in memory.in_files(one.start, one.size):
                end = Pa(start + size)
                runs.append(RamRun(start, end, descriptors.index(descriptor), offset))
                start = end
        return cls(tuple(runs)), descriptors

    def mapped(self, descriptors: Sequence[int]) -> MappedRam:
        """This maps the files read-only.

        Raises:
            BadMessage: a run lies in a file that was not handed over.
            MemoryFault: a file cannot be mapped, or is shorter than what it should hold.
        """
        if not all(0 <= run.file < len(descriptors) for run in self.runs):
            raise BadMessage("a run of memory lies in a file that was not handed over")
        return MappedRam([_ram_file(run, descriptors[run.file]) for run in self.runs])


def _ram_file(run: RamRun, descriptor: int) -> RamFile:
    path = Path(f"/proc/self/fd/{descriptor}")
    return RamFile(PaRange(run.start, run.end), path, run.offset, descriptor)
