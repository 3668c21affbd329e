"""RAM inside of QEMU's own process, read through /proc/PID/mem where it is not shared.

References: Linux proc(5), /proc/pid/mem and /proc/pid/pagemap.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.physical import Window
from qvmi.memory.ranges import joined

__all__ = ["HostRun", "ProcessMemory"]

_PAGEMAP_ENTRY: Final = 8
_PAGEMAP_BATCH: Final = 1 << 16
"""Pages whose state is read at once: 512 KiB of pagemap for 256 MiB of guest RAM."""
_PRESENT_OR_SWAPPED: Final = 0b11 << 62


@dataclass(frozen=True, slots=True)
class HostRun:
    """This is a run of guest RAM and where QEMU has it mapped.

    Args:
        range: guest physical addresses.
        host_address: the virtual address of its first byte in QEMU's process.
    """

    range: PaRange
    host_address: int


class ProcessMemory:
    """This is guest RAM read from QEMU's process; every read is a copy.

    Args:
        pid: of the QEMU process.
        runs: where it has the guest's RAM.

    Raises:
        MemoryFault: the process may not be read, or is gone.
    """

    __slots__ = ("_descriptor", "_pid", "_runs", "description", "ranges")

    def __init__(self, pid: int, runs: Sequence[HostRun]) -> None:
        self._pid = pid
        self._runs = tuple(sorted(runs, key=lambda run: run.range.start))
        self.ranges: Sequence[PaRange] = joined(run.range for run in runs)
        self.description = f"memory of QEMU's process {pid}"
        try:
            self._descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            why = f"/proc/{pid}/mem: {error.strerror}"
            raise MemoryFault(self.ranges[0].start if runs else 0, 0, why=why) from error

    @property
    def windows(self) -> Sequence[Window]:
        """There are none: another process's memory cannot be mapped."""
        return ()

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: part of the range is no RAM, or QEMU is gone.
        """
        parts: list[bytes] = []
        here, end = pa, pa + size
        for run in self._runs:
            if run.range.start <= here < run.range.end and here < end:
                stop = Pa(min(end, run.range.end))
                parts.append(self._pread(run, here, stop - here))
                here = stop
        if here < end or size < 0:
            raise MemoryFault(here, size, why="no RAM of the guest there")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates the pages that QEMU has touched, by /proc/PID/pagemap.

        Where pagemap may not be read, it is all of the RAM.
        """
        try:
            pagemap = os.open(f"/proc/{self._pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            yield from (run.range for run in self._runs)
            return
        try:
            for run in self._runs:
                yield from _touched(pagemap, run)
        finally:
            os.close(pagemap)

    def close(self) -> None:
        """This closes the source; later reads fault."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _pread(self, run: HostRun, pa: Pa, size: int) -> bytes:
        address = run.host_address + pa - run.range.start
        try:
            data = os.pread(self._descriptor, size, address)
        except OSError as error:
            why = f"process {self._pid}: {error.strerror}"
            raise MemoryFault(pa, size, why=why) from error
        if len(data) == size:
            return data
        if not data:
            raise MemoryFault(pa, size, why=f"process {self._pid} is gone")
        return data + self._pread(run, Pa(pa + len(data)), size - len(data))


def _touched(pagemap: int, run: HostRun) -> Iterator[PaRange]:
    """This iterates the parts of a run whose pages are present or swapped out."""
    for batch in range(run.range.start, run.range.end, _PAGEMAP_BATCH * PAGE_SIZE):
        size = min(run.range.end - batch, _PAGEMAP_BATCH * PAGE_SIZE)
        first_page = (run.host_address + batch - run.range.start) // PAGE_SIZE
        entries = array("Q")
        wanted = size // PAGE_SIZE * _PAGEMAP_ENTRY
        entries.frombytes(os.pread(pagemap, wanted, first_page * _PAGEMAP_ENTRY))
        here = batch
        for touched, pages in groupby(entries, key=lambda entry: bool(entry & _PRESENT_OR_SWAPPED)):
            length = sum(1 for _ in pages) * PAGE_SIZE
            if touched:
                yield PaRange(Pa(here), Pa(here + length))
            here += length
