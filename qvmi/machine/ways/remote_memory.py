"""Guest memory that has to be asked for: each read is a conversation on the machine's event loop.

It is read from other threads. On the event loop itself a read would wait for an answer which it
keeps from being read.

While the guest runs, every read asks anew: walks of a running guest recognise that it has changed by
reading twice, and a page that was kept would say that it has not. While the guest stands still, and
not a moment longer, whole pages are kept, with those around them.
"""

import asyncio
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, Protocol

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MemoryFault, NotDirect
from qvmi.machine.worker import ask, checkpoint
from qvmi.memory.physical import Window
from qvmi.memory.ranges import joined

__all__ = ["Conversation", "RemoteMemory"]

_PART: Final = 1 << 20
"""Bytes asked for at once, so that a cancel or another reader is heard in between."""
_MAX_KEPT: Final = 1 << 14
"""Pages kept of a guest that stands still: 64 MiB. No walk reads as much twice; a dump reads all once."""
_MAX_KEPT_READ: Final = 1 << 18
"""Bytes of a read whose pages are kept; what reads more at once copies it for itself."""
_CLOSED: Final = "the memory was closed"


class Conversation(Protocol):
    """This asks for guest memory, on the event loop."""

    @property
    def description(self) -> str:
        """This says in a few words how the bytes are read."""
        ...

    @property
    def stops_guest(self) -> bool:
        """This tells whether the guest stands still for each read."""
        ...

    @property
    def block(self) -> int:
        """This is what is read at once where it costs hardly more than a page: bytes, whole pages."""
        ...

    async def fetch(self, pa: Pa, size: int) -> bytes:
        """This asks for exactly so many bytes, all of them RAM.

        Raises:
            MemoryFault: they cannot be had.
            QvmiError: there was no answer.
        """
        ...

    async def let_go(self) -> None:
        """This ends a standstill that was begun for reading alone."""
        ...

    def close(self) -> None:
        """This removes what is left behind."""
        ...


class RemoteMemory:
    """This is guest RAM behind a conversation. It is made on the event loop.

    Args:
        ranges: the guest's RAM, in any order.
        conversation: asks for the bytes.
    """

    def __init__(self, ranges: Sequence[PaRange], conversation: Conversation) -> None:
        self.ranges: Sequence[PaRange] = joined(ranges)
        self._starts = [ram.start for ram in self.ranges]
        self._conversation = conversation
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._kept: dict[int, bytes] | None = None
        self._closed = False

    @property
    def description(self) -> str:
        """This says in a few words how the bytes are read."""
        return self._conversation.description

    @property
    def stops_guest(self) -> bool:
        """This tells whether the guest stands still for each read."""
        return self._conversation.stops_guest

    @property
    def windows(self) -> Sequence[Window]:
        """There are none: each read is a copy."""
        return ()

    def not_direct(self) -> NotDirect:
        """This is the error of whoever wants to read on the event loop."""
        return NotDirect(
            f"the guest's memory is read by {self.description}, which the event loop cannot wait for:"
            " use `await machine.query(lambda guest: …)`"
        )

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes, from another thread than the event loop's.

        Raises:
            MemoryFault: part of the range is no RAM, it cannot be read, or the memory was closed.
            NotDirect: this is the event loop's own thread.
            MachineGone, QmpTimeout, GdbstubTimeout, AttachError: there was no answer.
        """
        kept = self._kept
        if kept is not None:
            page = kept.get(pa // PAGE_SIZE)
            at = pa % PAGE_SIZE
            if page is not None and 0 <= size <= PAGE_SIZE - at:
                checkpoint()
                return page[at : at + size]
        ram = self._require_ram(pa, size)
        self._require_other_thread()
        if kept is not None and 0 < size <= _MAX_KEPT_READ and _has_whole_pages(ram, pa, size):
            return self._read_kept(kept, ram, pa, size)
        parts = range(pa, pa + size, _PART)
        return b"".join(self._asked(at, min(_PART, pa + size - at)) for at in parts)

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates all of the RAM: nobody tells which of it was never touched.

        Raises:
            MemoryFault: the memory was closed.
        """
        for ram in self.ranges:
            if self._closed:
                raise MemoryFault(ram.start, 0, why=_CLOSED)
            yield ram

    def close(self) -> None:
        """This ends all reading; later reads fault."""
        self._closed = True
        self._kept = None
        self._conversation.close()

    def begin_still(self) -> None:
        """This notes that the guest stands still: what is read from now on stays true."""
        if not self._closed:
            self._kept = {}

    def end_still(self) -> None:
        """This notes that the guest runs from now on, or may."""
        self._kept = None

    async def let_go(self) -> None:
        """This lets a guest go on that stands still because it was read, and for nothing else."""
        await self._conversation.let_go()

    def _require_ram(self, pa: Pa, size: int) -> PaRange:
        """This is the range that holds another one; raises MemoryFault where none does."""
        if self._closed:
            raise MemoryFault(pa, size, why=_CLOSED)
        place = bisect_right(self._starts, pa) - 1
        if size < 0 or place < 0 or pa >= self.ranges[place].end:
            raise MemoryFault(pa, size, why="no RAM of the guest there")
        ram = self.ranges[place]
        if pa + size > ram.end:
            raise MemoryFault(ram.end, size, why="no RAM of the guest there")
        return ram

    def _require_other_thread(self) -> None:
        if threading.get_ident() == self._loop_thread:
            raise self.not_direct()

    def _read_kept(self, kept: dict[int, bytes], ram: PaRange, pa: Pa, size: int) -> bytes:
        """This reads by whole pages, each of them once."""
        first, last = pa // PAGE_SIZE, (pa + size - 1) // PAGE_SIZE
        pages = {page: kept.get(page) for page in range(first, last + 1)}
        missing = [page for page, data in pages.items() if data is None]
        if missing:
            fresh = self._fresh(ram, missing[0], missing[-1] + 1)
            if len(kept) + len(fresh) > _MAX_KEPT:
                kept.clear()
            kept.update(fresh)
            pages.update((page, fresh[page]) for page in missing)
        whole = b"".join(data for data in pages.values() if data is not None)
        at = pa - first * PAGE_SIZE
        return whole[at : at + size]

    def _fresh(self, ram: PaRange, first: int, behind: int) -> dict[int, bytes]:
        """This asks for pages, and for those around them that come at hardly any cost."""
        block = self._conversation.block // PAGE_SIZE
        low = max(first // block * block, -(-ram.start // PAGE_SIZE))
        high = min(-(-behind // block) * block, ram.end // PAGE_SIZE)
        data = self._asked(low * PAGE_SIZE, (high - low) * PAGE_SIZE)
        return {
            low + number: data[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
            for number in range(high - low)
        }

    def _asked(self, pa: int, size: int) -> bytes:
        checkpoint()
        doing = f"read {size} bytes at physical address {pa:#x}"
        try:
            return ask(partial(self._fetch, Pa(pa), size), self._loop, doing=doing)
        except RuntimeError as error:  # the event loop was closed
            raise MemoryFault(pa, size, why=_CLOSED) from error

    async def _fetch(self, pa: Pa, size: int) -> bytes:
        if self._closed:
            raise MemoryFault(pa, size, why=_CLOSED)
        data = await self._conversation.fetch(pa, size)
        if len(data) != size:
            raise MemoryFault(Pa(pa + len(data)), size, why=f"only {len(data)} bytes came")
        return data


def _has_whole_pages(ram: PaRange, pa: int, size: int) -> bool:
    """This tells whether all pages that hold a range lie in RAM from end to end."""
    first = pa // PAGE_SIZE * PAGE_SIZE
    behind = -(-(pa + size) // PAGE_SIZE) * PAGE_SIZE
    return ram.start <= first and behind <= ram.end
