"""Guest memory that has to be asked for: each read is a conversation, held on the machine's event loop.

The readers are synchronous, so they run in other threads; on the event loop itself a read would wait
for an answer that it keeps from being read.
"""

import asyncio
import os
import stat
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as NoAnswer
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.errors import MachineGone, MemoryFault, NotDirect, QvmiError
from qvmi.memory.physical import Window
from qvmi.qmp.monitor import Monitor

__all__ = ["Fetch", "RemoteMemory", "SavedMemory"]

Fetch = Callable[[Pa, int], Awaitable[bytes]]
"""Asks for bytes of one RAM range, at most `MAX_FETCH`; raises MemoryFault where there are none."""

MAX_FETCH: Final = 1 << 20
"""Bytes asked for at once: what takes a few milliseconds, so that a cancel is heard soon."""
_ANSWERS_S: Final = 10.0
"""How long a fetch may take; QEMU's own limits end it before."""
_MAX_KEPT: Final = 1 << 14
"""Pages kept of a guest that stands still: 64 MiB, more than any walk reads twice."""


class RemoteMemory:
    """This is guest RAM behind a conversation.

    Args:
        ranges: of the RAM, in rising order.
        fetch: asks for bytes, on the event loop of whoever made this.
        description: how the bytes are read.
    """

    def __init__(self, ranges: Sequence[PaRange], fetch: Fetch, description: str) -> None:
        self.ranges = tuple(ranges)
        self.description = description
        self.windows: Sequence[Window] = ()
        self._fetch = fetch
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._kept: dict[int, bytes] | None = None
        self._closed = False

    def read(self, pa: Pa, size: int) -> bytes:
        """This reads exactly ``size`` bytes, from another thread than the event loop's.

        Raises:
            MemoryFault: part of the range is no RAM, or the memory was closed.
            NotDirect: this is the event loop's own thread.
            MachineGone, QmpTimeout: there was no answer.
        """
        self._require_ram(pa, size)
        if threading.get_ident() == self._thread:
            raise NotDirect(
                f"the guest's memory is read by {self.description}, which cannot be waited for on"
                " the event loop: use `await machine.query(lambda guest: ...)`"
            )
        if self._kept is None or size > MAX_FETCH:
            return b"".join(self._asked(at, part) for at, part in _parts(pa, size))
        return self._read_kept(self._kept, pa, size)

    def keep_pages(self, *, keep: bool) -> None:
        """This says whether what was read once stays true: while the guest stands still it does."""
        self._kept = {} if keep else None

    def data_ranges(self) -> Iterator[PaRange]:
        """This iterates all of the RAM: nobody says which of it was never touched.

        Raises:
            MemoryFault: the memory was closed.
        """
        for ram in self.ranges:
            if self._closed:
                raise MemoryFault(ram.start, 0, why="the memory was closed")
            yield ram

    def close(self) -> None:
        """This ends all reading; later reads fault."""
        self._closed = True
        self._kept = None

    def _require_ram(self, pa: Pa, size: int) -> None:
        here, end = pa, pa + size
        for ram in self.ranges:
            if ram.start <= here < ram.end:
                here = min(ram.end, Pa(end))
        if self._closed or size < 0 or here < end or not self._is_ram(pa):
            why = "the memory was closed" if self._closed else "no RAM of the guest there"
            raise MemoryFault(here, size, why=why)

    def _is_ram(self, pa: Pa) -> bool:
        return any(ram.start <= pa < ram.end for ram in self.ranges)

    def _read_kept(self, kept: dict[int, bytes], pa: Pa, size: int) -> bytes:
        """This reads by whole pages, each of them once."""
        first, last = pa // PAGE_SIZE, (pa + max(size, 1) - 1) // PAGE_SIZE
        pages = []
        for page in range(first, last + 1):
            if page not in kept:
                if len(kept) >= _MAX_KEPT:
                    kept.clear()
                start, end = self._page(page)
                kept[page] = bytes(start - page * PAGE_SIZE) + self._asked(start, end - start)
            pages.append(kept[page])
        start = pa - first * PAGE_SIZE
        return b"".join(pages)[start : start + size]

    def _page(self, page: int) -> tuple[Pa, Pa]:
        """This is what of a page is RAM, of a range that does not end with a page."""
        low, high = page * PAGE_SIZE, (page + 1) * PAGE_SIZE
        ram = next(ram for ram in self.ranges if ram.start < high and low < ram.end)
        return Pa(max(low, ram.start)), Pa(min(high, ram.end))

    def _asked(self, pa: Pa, size: int) -> bytes:
        if not size:
            return b""
        answer = asyncio.run_coroutine_threadsafe(self._fetched(pa, size), self._loop)
        try:
            return answer.result(_ANSWERS_S)
        except NoAnswer as error:
            answer.cancel()
            raise MachineGone(f"reading {size} bytes at {pa:#x}") from error

    async def _fetched(self, pa: Pa, size: int) -> bytes:
        return await self._fetch(pa, size)


def _parts(pa: Pa, size: int) -> Iterator[tuple[Pa, int]]:
    for at in range(pa, pa + size, MAX_FETCH):
        yield Pa(at), min(MAX_FETCH, pa + size - at)
