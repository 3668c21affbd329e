"""RAM that QEMU shares with this process: files mapped read-only, read without a copy.

References: Linux lseek(2), SEEK_DATA and SEEK_HOLE.
"""

import contextlib
import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault
from qvmi.memory.physical import Window
from qvmi.memory.ranges import joined

__all__ = ["MappedRam", "RamFile"]

_CLOSED: Final = "the memory was closed"


@dataclass(frozen=True, slots=True)
class RamFile:
    """This is a run of guest RAM and where its bytes lie in a file.

    Args:
        range: guest physical addresses.
        path: of the file; may be a ``/proc/PID/fd/N`` link.
        offset: of the run's first byte in the file, in bytes.
        descriptor: of the file where it was handed over open, which stays the caller's; None for one
            that is to be opened.
    """

    range: PaRange
    path: Path
    offset: int
    descriptor: int | None = None


class MappedRam:
    """This is guest RAM through read-only shared mappings of the files that hold it.

    Args:
        files: the runs, in any order.

    Raises:
        MemoryFault: a file cannot be opened or mapped, is shorter than what it should hold, or
            holds addresses that another one holds too.
    """

    __slots__ = ("_mapped", "_starts", "_windows", "description", "ranges")

    def __init__(self, files: Sequence[RamFile]) -> None:
        self._mapped: dict[Path, tuple[int, mmap]] = {}
        self._windows: tuple[Window, ...] = ()
        self._starts: tuple[Pa, ...] = ()
        by_address = sorted(files, key=lambda file: file.range.start)
        _check_disjoint(by_address)
        try:
            self._windows = tuple(self._map(file) for file in _without_seams(by_address))
        except BaseException:
            self.close()
            raise
        self._starts = tuple(window.start for window in self._windows)
        self.ranges: Sequence[PaRange] = joined(file.range for file in files)
        self.description = "mapped RAM " + ", ".join(map(str, self._mapped))

    @property
    def windows(self) -> Sequence[Window]:
        """These are the mapped runs by rising address; none after :meth:`close`."""
        return self._windows

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes.

        Raises:
            MemoryFault: part of the range is no RAM of the guest, or the memory was closed.
        """
        # A dump may have thousands of windows, a machine one or two.
        at = bisect_right(self._starts, pa) - 1
        if at >= 0:
            window = self._windows[at]
            if pa <= pa + size <= window.end:
                index = pa - window.start + window.offset
                if size > PAGE_SIZE:
                    return self._pread(window, pa, size)
                return window.buffer[index : index + size]
        return self._read_across(pa, size)

    def _pread(self, window: Window, pa: Pa, size: int) -> bytes:
        """This reads much at once without touching the mapping.

        Touching a hole of a file in memory makes the host allocate it; and what was cut off the
        file since is a short read here, but the end of this process there.
        """
        offset = pa - window.start + window.offset
        try:
            data = os.pread(self._descriptor(window, pa, size), size, offset)
        except OSError as error:
            raise MemoryFault(pa, size, why=f"the RAM file: {error.strerror}") from error
        if len(data) == size:
            return data
        if not data:
            raise MemoryFault(pa, size, why="the RAM file was cut off there")
        return data + self._pread(window, Pa(pa + len(data)), size - len(data))

    def _descriptor(self, window: Window, pa: Pa, size: int) -> int:
        for descriptor, mapping in tuple(self._mapped.values()):
            if mapping is window.buffer:
                return descriptor
        raise MemoryFault(pa, size, why=_CLOSED)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """These are the open files, for a process that is to read them itself."""
        return tuple(descriptor for descriptor, _ in self._mapped.values())

    def in_files(self, pa: Pa, size: int) -> Iterator[tuple[int, int, int]]:
        """This iterates where a range lies in the files: descriptor, offset and size.

        Raises:
            MemoryFault: part of the range is no RAM of the guest, or the memory was closed.
        """
        while size > 0:
            at = bisect_right(self._starts, pa) - 1
            if at < 0 or pa >= self._windows[at].end:
                raise MemoryFault(pa, size, why="no RAM of the guest there")
            window = self._windows[at]
            here = min(size, window.end - pa)
            descriptor = self._descriptor(window, pa, here)
            yield descriptor, pa - window.start + window.offset, here
            pa, size = Pa(pa + here), size - here

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates the runs that the files hold data for; holes are left out.

        Raises:
            MemoryFault: the memory was closed.
        """
        descriptors = {id(mapping): one for one, mapping in self._mapped.values()}
        for window in self._windows:
            if not self._windows:  # closed by whoever iterates
                break
            yield from _data_ranges(descriptors[id(window.buffer)], window)
        if self.ranges and not self._windows:
            raise MemoryFault(self.ranges[0].start, 0, why=_CLOSED)

    def close(self) -> None:
        """This unmaps and closes everything."""
        self._windows, self._starts = (), ()
        for descriptor, mapping in self._mapped.values():
            with contextlib.suppress(BufferError):  # in use; unmapped when its last user is gone
                mapping.close()
            os.close(descriptor)
        self._mapped.clear()

    def _map(self, file: RamFile) -> Window:
        if file.path not in self._mapped:
            self._mapped[file.path] = _open(file)
        mapping = self._mapped[file.path][1]
        if not 0 <= file.offset <= len(mapping) - file.range.size:
            end = file.offset + file.range.size
            why = f"{file.path} has {len(mapping)} bytes, not those from {file.offset} to {end}"
            raise MemoryFault(file.range.start, file.range.size, why=why)
        return Window(file.range.start, file.range.end, mapping, file.offset)

    def _read_across(self, pa: Pa, size: int) -> bytes:
        """This reads a range that no single window holds: across windows, or faulting."""
        parts: list[bytes] = []
        here, end = pa, pa + size
        for window in self._windows:
            if window.start <= here < window.end and here < end:
                stop = Pa(min(end, window.end))
                parts.append(self.read(here, stop - here))
                here = stop
        if here < end or size < 0:
            why = "no RAM of the guest there" if self._windows else _CLOSED
            raise MemoryFault(here, size, why=why)
        return b"".join(parts)


def _without_seams(by_address: Sequence[RamFile]) -> Iterator[RamFile]:
    """This joins runs that go on in the same file: a chipset cuts the first MiB into pieces.

    Every read looks for its window, so the fewer there are the better.
    """
    pending: RamFile | None = None
    for file in by_address:
        if pending is not None and _goes_on(pending, file):
            whole = PaRange(pending.range.start, file.range.end)
            pending = replace(pending, range=whole)
            continue
        if pending is not None:
            yield pending
        pending = file
    if pending is not None:
        yield pending


def _goes_on(below: RamFile, above: RamFile) -> bool:
    """This tells whether one run follows another, by address and in the file."""
    return (
        below.path == above.path
        and below.range.end == above.range.start
        and below.offset + below.range.size == above.offset
    )


def _check_disjoint(by_address: Sequence[RamFile]) -> None:
    for below, above in pairwise(by_address):
        if above.range.start < below.range.end:
            why = f"both {below.path} and {above.path} hold it"
            raise MemoryFault(above.range.start, above.range.size, why=why)


def _open(file: RamFile) -> tuple[int, mmap]:
    try:
        if file.descriptor is None:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            descriptor = os.dup(file.descriptor)
    except OSError as error:
        why = f"{file.path}: {error.strerror}"
        raise MemoryFault(file.range.start, file.range.size, why=why) from error
    try:
        return descriptor, mmap(descriptor, 0, flags=MAP_SHARED, prot=PROT_READ)
    except (OSError, ValueError) as error:
        os.close(descriptor)
        why = f"{file.path} cannot be mapped: {error}"
        raise MemoryFault(file.range.start, file.range.size, why=why) from error


def _data_ranges(descriptor: int, window: Window) -> list[PaRange]:
    """These are the parts of a window that its file holds data for."""
    to_pa = window.start - window.offset
    found: list[PaRange] = []
    here, end = window.offset, window.offset + window.end - window.start
    while here < end:
        try:
            data = os.lseek(descriptor, here, os.SEEK_DATA)
            hole = os.lseek(descriptor, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind here
                break
            data, hole = here, end  # a file system that cannot tell, as hugetlbfs
        if data >= end:
            break
        here = min(end, hole)
        found.append(PaRange(Pa(data + to_pa), Pa(here + to_pa)))
    return found
