"""How the process that scans gets at guest memory: by the files it is in, or by a copy."""

import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Protocol, runtime_checkable

from qvmi.addr import Pa
from qvmi.errors import MemoryFault, ScanFailed
from qvmi.machine.scanning.scanner import NO_FILE, WindowOrder
from qvmi.memory.physical import PhysicalMemory
from qvmi.memory.stretch import Piece, StretchWindow
from qvmi.semantics.guest_os import Gap
from qvmi.view import View

__all__ = ["InFiles", "WindowSource", "window_source"]

FILE_REQUEST: Final = 16 << 20
"""Bytes of windows that are asked for at once: in larger ones Python's allocator makes each page anew."""
COPY_REQUEST: Final = 1 << 20
"""The same where they are copied: what asks QEMU's monitor for them takes some seconds."""
_READ: Final = 1 << 20
"""Bytes copied at once."""
_SLOT_BITS: Final = 32
"""Copies of different requests lie so far apart in the file, which is none but where it is written."""
_SLOTS: Final = 3
"""Requests whose copies are kept: one that is scanned, one that waits, one that is made."""

LookAtView = Callable[[Callable[[View], None]], Coroutine[Any, Any, None]]


@runtime_checkable
class InFiles(Protocol):
    """This is a memory whose bytes are in files that another process can read."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """These are the open files."""
        ...

    def in_files(self, pa: Pa, size: int) -> Iterator[tuple[int, int, int]]:
        """This iterates where a range lies: descriptor, offset and size."""
        ...


class WindowSource(Protocol):
    """This says where the bytes of windows are."""

    @property
    def request_size(self) -> int:
        """This is how many bytes of windows are asked for at once."""
        ...

    @property
    def descriptors(self) -> tuple[int, ...]:
        """These are the files they may be in."""
        ...

    async def orders(self, windows: Sequence[StretchWindow]) -> tuple[list[WindowOrder], list[Gap]]:
        """This makes windows ready to be scanned, and tells what of them cannot be read."""
        ...

    def close(self) -> None:
        """This releases what was made for it."""
        ...


def window_source(memory: PhysicalMemory, look: LookAtView) -> WindowSource:
    """This is the fastest source there is.

    Args:
        memory: that is scanned.
        look: looks at the guest in a thread that may read it, whichever way that is done.
    """
    return _FileWindows(memory) if isinstance(memory, InFiles) else _CopiedWindows(look)


class _FileWindows:
    """This lets the other process read the files that the memory is in."""

    def __init__(self, memory: InFiles) -> None:
        self._memory = memory
        self.request_size = FILE_REQUEST

    @property
    def descriptors(self) -> tuple[int, ...]:
        """These are the files."""
        return self._memory.descriptors

    async def orders(self, windows: Sequence[StretchWindow]) -> tuple[list[WindowOrder], list[Gap]]:
        """This looks up where the bytes are."""
        orders, gaps = [], []
        for window in windows:
            pieces: list[tuple[int, int, int]] = []
            for piece in window.pieces:
                try:
                    pieces += _in_files(self._memory, piece)
                except MemoryFault as fault:
                    gaps.append(_gap(piece, fault))
                    pieces.append((NO_FILE, 0, piece.size))
            orders.append(WindowOrder(pieces, window.skip, window.own))
        return orders, gaps

    def close(self) -> None:
        """This leaves the files to their owner."""


def _in_files(memory: InFiles, piece: Piece) -> list[tuple[int, int, int]]:
    if piece.hole:
        return [(NO_FILE, 0, piece.size)]
    return list(memory.in_files(piece.pa, piece.size))


class _CopiedWindows:
    """This copies the memory into a file that only the two processes know."""

    def __init__(self, look: LookAtView) -> None:
        self._look = look
        self.request_size = COPY_REQUEST
        try:
            self._file = os.memfd_create("qvmi scan", os.MFD_CLOEXEC)
        except OSError as error:
            raise ScanFailed(f"no place for a copy of the memory: {error.strerror}") from error
        self._slot = 0

    @property
    def descriptors(self) -> tuple[int, ...]:
        """This is the file."""
        return (self._file,)

    async def orders(self, windows: Sequence[StretchWindow]) -> tuple[list[WindowOrder], list[Gap]]:
        """This reads the bytes."""
        copy = _Copy(self._file, self._slot << _SLOT_BITS)
        self._slot = (self._slot + 1) % _SLOTS

        def fill(view: View) -> None:
            for window in windows:
                copy.add(view.memory, window)

        await self._look(fill)
        return copy.orders, copy.gaps

    def close(self) -> None:
        """This gives the copies up."""
        os.close(self._file)


class _Copy:
    """This is a copy of some windows, one behind the other, from an offset in a file on."""

    def __init__(self, file: int, offset: int) -> None:
        self._file = file
        self._offset = offset
        self.orders: list[WindowOrder] = []
        self.gaps: list[Gap] = []

    def add(self, memory: PhysicalMemory, window: StretchWindow) -> None:
        """This copies a window; what of it cannot be read is as if it were zeros, and a gap."""
        pieces: list[tuple[int, int, int]] = []
        for piece in window.pieces:
            try:
                if not piece.hole:
                    self._copy(memory, piece)
                pieces.append((NO_FILE if piece.hole else self._file, self._offset, piece.size))
            except MemoryFault as fault:
                self.gaps.append(_gap(piece, fault))
                pieces.append((NO_FILE, 0, piece.size))
            self._offset += piece.size
        self.orders.append(WindowOrder(pieces, window.skip, window.own))

    def _copy(self, memory: PhysicalMemory, piece: Piece) -> None:
        for at in range(0, piece.size, _READ):
            data = memory.read(Pa(piece.pa + at), min(_READ, piece.size - at))
            try:
                os.pwrite(self._file, data, self._offset + at)
            except OSError as error:
                raise ScanFailed(f"no place for a copy of memory: {error.strerror}") from error


def _gap(piece: Piece, fault: MemoryFault) -> Gap:
    return Gap("memory", None, f"{piece.size} bytes at {piece.pa:#x} are not scanned: {fault}")
