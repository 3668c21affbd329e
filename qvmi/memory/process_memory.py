"""RAM inside of QEMU's own process, read through /proc/PID/mem where it is not shared.

References: Linux proc(5), /proc/pid/maps and /proc/pid/mem; Linux
Documentation/admin-guide/mm/pagemap.rst.
"""

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
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
            MemoryFault: part of the range is no RAM, QEMU is gone, or the memory was closed.
        """
        parts: list[bytes] = []
        here, end = pa, pa + size
        for run in self._runs:
            while run.range.start <= here < run.range.end and here < end:
                part = self._pread(run, here, min(end, run.range.end) - here)
                parts.append(part)
                here = Pa(here + len(part))
        if here < end or size < 0:
            raise MemoryFault(here, size, why="no RAM of the guest there")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """This is QEMU's memory as an open file, for a process that is to read it itself."""
        return (self._descriptor,) if self._descriptor >= 0 else ()

    def in_files(self, pa: Pa, size: int) -> Iterator[tuple[int, int, int]]:
        """This iterates where a range lies in that file: descriptor, offset and size.

        Raises:
            MemoryFault: part of the range is no RAM, or the memory was closed.
        """
        if self._descriptor < 0:
            raise MemoryFault(pa, size, why="the memory was closed")
        end = pa + size
        for run in self._runs:
            if run.range.start <= pa < min(run.range.end, end):
                here = min(end, run.range.end) - pa
                yield self._descriptor, run.host_address + pa - run.range.start, here
                pa = Pa(pa + here)
        if pa < end:
            raise MemoryFault(pa, end - pa, why="no RAM of the guest there")

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates the pages that QEMU has touched, by /proc/PID/pagemap.

        Where pagemap cannot tell, which is for memory that is not anonymous and private, it is
        all of the RAM.

        Raises:
            MemoryFault: the memory was closed.
        """
        for run in self._runs:
            if self._descriptor < 0:
                raise MemoryFault(run.range.start, 0, why="the memory was closed")
            yield from self._touched(run)

    def close(self) -> None:
        """This closes the source; later reads fault."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _pread(self, run: HostRun, pa: Pa, size: int) -> bytes:
        """This reads at least one byte and at most ``size``."""
        if self._descriptor < 0:
            raise MemoryFault(pa, size, why="the memory was closed")
        try:
            data = os.pread(self._descriptor, size, run.host_address + pa - run.range.start)
        except OSError as error:
            why = f"process {self._pid}: {error.strerror}"
            raise MemoryFault(pa, size, why=why) from error
        if not data:
            raise MemoryFault(pa, size, why=f"process {self._pid} is gone")
        return data

    def _touched(self, run: HostRun) -> Iterator[PaRange]:
        """This iterates the parts of a run whose pages are present or swapped out."""
        if not _is_anonymous(self._pid, run):
            yield run.range
            return
        for start in range(run.range.start, run.range.end, _PAGEMAP_BATCH * PAGE_SIZE):
            end = min(run.range.end, start + _PAGEMAP_BATCH * PAGE_SIZE)
            host_address = run.host_address + start - run.range.start
            count = (end - start) // PAGE_SIZE
            here = start
            for untouched, pages in groupby(_pages_untouched(self._pid, host_address, count)):
                behind = here + sum(1 for _ in pages) * PAGE_SIZE
                if not untouched:
                    yield PaRange(Pa(here), Pa(behind))
                here = behind
            if here < end:
                yield PaRange(Pa(here), Pa(end))


def _pages_untouched(pid: int, host_address: int, count: int) -> Iterator[bool]:
    """This tells for each of so many pages whether the process never touched it.

    It tells of fewer, or of none, where pagemap does.
    """
    try:
        with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
            pagemap.seek(host_address // PAGE_SIZE * _PAGEMAP_ENTRY)
            data = pagemap.read(count * _PAGEMAP_ENTRY) or b""
    except OSError:
        return iter(())
    entries = array("Q", data[: len(data) // _PAGEMAP_ENTRY * _PAGEMAP_ENTRY])
    return (not entry & _PRESENT_OR_SWAPPED for entry in entries)


def _is_anonymous(pid: int, run: HostRun) -> bool:
    """This tells whether one private mapping of no file holds the run.

    Only there is a page that is neither present nor swapped out full of zeros.
    """
    first, last = run.host_address, run.host_address + run.range.size
    try:
        with Path(f"/proc/{pid}/maps").open("rb") as maps:
            for line in maps:
                addresses, permissions, _, _, inode, *_ = line.split(maxsplit=5)
                start, _, end = addresses.partition(b"-")
                if int(start, 16) <= first and last <= int(end, 16):
                    return permissions.endswith(b"p") and inode == b"0"
    except (OSError, ValueError):
        return False
    return False
