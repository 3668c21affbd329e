"""RAM that QEMU shares with this process: files mapped read-only, read without a copy.

References: Linux lseek(2), SEEK_DATA and SEEK_HOLE.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path

from qvmi.addr import Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.physical import Window
from qvmi.memory.ranges import joined

__all__ = ["MappedRam", "RamFile"]


@dataclass(frozen=True, slots=True)
class RamFile:
    """This is a run of guest RAM and where its bytes lie in a file.

    Args:
        range: guest physical addresses.
        path: of the file; may be a ``/proc/PID/fd/N`` link.
        offset: of the run's first byte in the file, in bytes.
    """

    range: PaRange
    path: Path
    offset: int


class MappedRam:
    """This is guest RAM through read-only shared mappings of the files that hold it.

    Args:
        files: the runs, in any order.

    Raises:
        MemoryFault: a file cannot be opened or mapped, or is shorter than what it should hold.
    """

    __slots__ = ("_descriptors", "_windows", "description", "ranges")

    def __init__(self, files: Sequence[RamFile]) -> None:
        self._descriptors: dict[Path, tuple[int, mmap]] = {}
        self._windows: tuple[Window, ...] = ()
        try:
            self._windows = tuple(
                self._map(file) for file in sorted(files, key=lambda file: file.range.start)
            )
        except BaseException:
            self.close()
            raise
        self.ranges: Sequence[PaRange] = joined(file.range for file in files)
        self.description = "mapped RAM " + ", ".join(map(str, self._descriptors))

    @property
    def windows(self) -> Sequence[Window]:
        """These are the mapped runs by rising address."""
        return self._windows

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: part of the range is no RAM of the guest.
        """
        for window in self._windows:
            if window.start <= pa and pa + size <= window.end:
                index = pa - window.start + window.offset
                return window.buffer[index : index + size]
        return self._read_across(pa, size)

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates the runs that the files hold data for; holes are left out."""
        for window in self._windows:
            descriptor = self._descriptor(window)
            start, end = window.offset, window.offset + window.end - window.start
            for data_start, data_end in _data(descriptor, start, end):
                first = window.start + data_start - start
                yield PaRange(Pa(first), Pa(first + data_end - data_start))

    def close(self) -> None:
        """This unmaps and closes everything."""
        self._windows = ()
        for descriptor, mapping in self._descriptors.values():
            mapping.close()
            os.close(descriptor)
        self._descriptors.clear()

    def _map(self, file: RamFile) -> Window:
        if file.path not in self._descriptors:
            self._descriptors[file.path] = _open(file)
        mapping = self._descriptors[file.path][1]
        if file.offset + file.range.size > len(mapping):
            why = f"{file.path} has {len(mapping)} bytes, needs {file.offset + file.range.size}"
            raise MemoryFault(file.range.start, file.range.size, why=why)
        return Window(file.range.start, file.range.end, mapping, file.offset)

    def _descriptor(self, window: Window) -> int:
        return next(
            descriptor
            for descriptor, mapping in self._descriptors.values()
            if mapping is window.buffer
        )

    def _read_across(self, pa: Pa, size: int) -> bytes:
        """This reads a range that no single window holds: across windows, or faulting."""
        parts: list[bytes] = []
        here, end = pa, pa + size
        for window in self._windows:
            if window.start <= here < window.end and here < end:
                stop = min(end, window.end)
                index = here - window.start + window.offset
                parts.append(window.buffer[index : index + stop - here])
                here = Pa(stop)
        if here < end or size < 0:
            raise MemoryFault(here, size, why="no RAM of the guest there")
        return b"".join(parts)


def _open(file: RamFile) -> tuple[int, mmap]:
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        why = f"{file.path}: {error.strerror}"
        raise MemoryFault(file.range.start, file.range.size, why=why) from error
    try:
        return descriptor, mmap(descriptor, 0, flags=MAP_SHARED, prot=PROT_READ)
    except (OSError, ValueError) as error:
        os.close(descriptor)
        why = f"{file.path} cannot be mapped: {error}"
        raise MemoryFault(file.range.start, file.range.size, why=why) from error


def _data(descriptor: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """This iterates the file offsets of [start, end) that hold data."""
    here = start
    while here < end:
        try:
            data = os.lseek(descriptor, here, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind here
                return
            raise MemoryFault(here, end - here, why=f"SEEK_DATA failed: {error}") from error
        if data >= end:
            return
        here = min(end, os.lseek(descriptor, data, os.SEEK_HOLE))
        yield data, here
