"""Reading and writing guest memory through a gdbstub, many packets at a time.

References: GDB manual, "Packets" (``m``, ``M``); QEMU ``gdbstub.c`` (``handle_read_mem``,
``target_memory_rw_debug``) and ``docs/system/gdb.rst`` (``Qqemu.PhyMemMode``).

Each write to the stub says whose addresses it means, and one that needed physical ones ends by turning
them off: whatever becomes of this process, the next client finds virtual addresses.
"""

from binascii import Error as NotHex
from binascii import unhexlify
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from qvmi.addr import PAGE_SIZE
from qvmi.errors import GdbstubRequestFailed, MemoryFault, UsageError
from qvmi.gdbstub.channel import Channel, Exchange
from qvmi.gdbstub.packets import (
    PHYSICAL,
    VIRTUAL,
    Features,
    ThreadId,
    check_ok,
    hex_data,
    read_memory,
    select_thread,
    write_memory,
)

__all__ = ["PHYSICAL_SPACE", "MemoryRead", "Space", "StubMemory", "virtual_space"]

# Packets in one write. QEMU takes 4096 bytes at a time off its socket, which hold some 200 short
# requests; a whole batch of the largest replies (4 KiB each) is half a megabyte.
_BATCH: Final = 128
# While the replies of one batch are read here, QEMU works on the next.
_IN_FLIGHT: Final = 2
_ADDRESSES: Final = 1 << 64


class MemoryRead(msgspec.Struct, frozen=True, gc=False):
    """This is a range of guest memory that is wanted: `size` bytes, at least 1."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Space:
    """This is what addresses mean.

    Args:
        kind: ``physical`` or ``virtual``.
        before: the requests that make the stub take them so. The first is one that may be lost: a
            request that finds the guest running is.
        after: the requests that undo it.
    """

    kind: str
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]

    def wrap(self, requests: Sequence[bytes]) -> list[bytes]:
        """This is one exchange's requests, which leave the stub as it was."""
        return [*self.before, *requests, *self.after]

    def unwrap(self, replies: Sequence[bytes]) -> Sequence[bytes]:
        """These are the replies to what was wrapped.

        Raises:
            GdbstubRequestFailed: the stub would not take addresses so.
            GdbstubProtocolError: it said something else.
        """
        first, last = len(self.before), len(replies) - len(self.after)
        for request, reply in zip(self.before, replies[:first], strict=True):
            check_ok(request, reply)
        for request, reply in zip(self.after, replies[last:], strict=True):
            check_ok(request, reply)
        return replies[first:last]


PHYSICAL_SPACE: Final = Space("physical", (VIRTUAL, PHYSICAL), (VIRTUAL,))
"""Guest physical addresses.

QEMU refuses none of them: what is neither RAM nor ROM reads as zeros or ones, or is a device, which
a read may change. Whoever reads here knows from the memory map where RAM is.
"""


def virtual_space(thread: ThreadId) -> Space:
    """This is the address space that a vCPU is in."""
    return Space("virtual", (VIRTUAL, select_thread(thread)), ())


class StubMemory:
    """This reads and writes over one conversation."""

    def __init__(self, channel: Channel, features: Features) -> None:
        self._channel = channel
        self._most_read = features.most_read
        self._most_written = features.most_written

    async def read(self, address: int, size: int, space: Space) -> bytes:
        """This reads one range.

        Raises:
            MemoryFault: with the first address that cannot be read.
            GuestRunning, GdbstubTimeout, MachineGone: no answer could be had.
        """
        (found,) = await self.read_many([MemoryRead(address, size)], space)
        if isinstance(found, MemoryFault):
            raise found
        return found

    async def read_many(
        self, reads: Sequence[MemoryRead], space: Space
    ) -> list[bytes | MemoryFault]:
        """This reads many ranges; one that cannot be read whole takes no other with it.

        Returns:
            For each range in order its bytes, or the fault with its first address that cannot be read.

        Raises:
            UsageError: a range is empty, or ends beyond 64 bits.
            GuestRunning, GdbstubTimeout, MachineGone: no answer could be had.
        """
        _check(reads)
        if all(read.size <= self._most_read for read in reads):
            found = await self._fetch(reads, space)
        else:
            found = await self._fetch_in_pieces(reads, space)
        crossing = [
            number
            for number, one in enumerate(found)
            if isinstance(one, MemoryFault) and _crosses_pages(reads[number])
        ]
        for number in crossing:
            found[number] = await self._first_fault(reads[number], space)
        return found

    async def write(self, address: int, data: bytes, space: Space) -> None:
        """This writes one range; whether that is allowed is decided by whoever calls.

        Raises:
            GdbstubRequestFailed: a part of it is not mapped; parts before it may be written.
            GuestRunning, GdbstubTimeout, MachineGone: it is not known how much was written.
        """
        _check([MemoryRead(address, len(data))])
        step = self._most_written
        requests = [
            write_memory(address + at, data[at : at + step]) for at in range(0, len(data), step)
        ]
        doing = f"write {len(data)} bytes at {space.kind} address {address:#x}"
        for at in range(0, len(requests), _BATCH):
            part = requests[at : at + _BATCH]
            replies = space.unwrap(await self._channel.ask(doing, space.wrap(part)))
            for request, reply in zip(part, replies, strict=True):
                check_ok(request, reply)

    async def _fetch(self, reads: Sequence[MemoryRead], space: Space) -> list[bytes | MemoryFault]:
        """This reads ranges of which each fits one packet."""
        found: list[bytes | MemoryFault] = []
        under_way: deque[tuple[Exchange, Sequence[MemoryRead]]] = deque()
        try:
            for at in range(0, len(reads), _BATCH):
                part = reads[at : at + _BATCH]
                requests = space.wrap([read_memory(read.address, read.size) for read in part])
                under_way.append((self._channel.begin(_doing(part, space), requests), part))
                if len(under_way) == _IN_FLIGHT:
                    found += await self._land(*under_way.popleft(), space)
            while under_way:
                found += await self._land(*under_way.popleft(), space)
        finally:
            for exchange, _ in under_way:
                exchange.done.cancel()
        return found

    async def _land(
        self, exchange: Exchange, reads: Sequence[MemoryRead], space: Space
    ) -> list[bytes | MemoryFault]:
        replies = space.unwrap(await self._channel.replies(exchange))
        try:
            found = [*map(unhexlify, replies)]
        except NotHex:
            found = []
        if [*map(len, found)] == [read.size for read in reads]:
            return [*found]
        return [_found(read, reply, space) for read, reply in zip(reads, replies, strict=True)]

    async def _fetch_in_pieces(
        self, reads: Sequence[MemoryRead], space: Space
    ) -> list[bytes | MemoryFault]:
        pieces = [list(_split(read, self._most_read)) for read in reads]
        parts = iter(await self._fetch([piece for one in pieces for piece in one], space))
        return [
            _join(read, [next(parts) for _ in one]) for read, one in zip(reads, pieces, strict=True)
        ]

    async def _first_fault(self, read: MemoryRead, space: Space) -> bytes | MemoryFault:
        """This finds the page that a range of several cannot be read for."""
        pages = [
            piece
            for page in _split(read, PAGE_SIZE, aligned=True)
            for piece in _split(page, self._most_read)
        ]
        return _join(read, await self._fetch(pages, space))


def _check(reads: Sequence[MemoryRead]) -> None:
    for read in reads:
        if read.size <= 0 or read.address < 0 or read.address + read.size > _ADDRESSES:
            raise UsageError(f"{read.size} bytes at {read.address:#x} are no range of addresses")


def _crosses_pages(read: MemoryRead) -> bool:
    return read.address // PAGE_SIZE != (read.address + read.size - 1) // PAGE_SIZE


def _split(read: MemoryRead, step: int, *, aligned: bool = False) -> Iterator[MemoryRead]:
    """These are the pieces of a range, each of at most `step` bytes."""
    at, end = read.address, read.address + read.size
    while at < end:
        until = min(at + step - (at % step if aligned else 0), end)
        yield MemoryRead(at, until - at)
        at = until


def _join(read: MemoryRead, parts: Sequence[bytes | MemoryFault]) -> bytes | MemoryFault:
    """This is a range again, or its first fault."""
    whole: list[bytes] = []
    for part in parts:
        if isinstance(part, MemoryFault):
            return MemoryFault(part.address, read.size, kind=part.kind, why="not mapped")
        whole.append(part)
    return b"".join(whole)


def _found(read: MemoryRead, reply: bytes, space: Space) -> bytes | MemoryFault:
    """This is what a reply stands for.

    Raises:
        GdbstubProtocolError: it is neither the bytes nor a refusal.
    """
    request = read_memory(read.address, read.size)
    try:
        return hex_data(request, reply, read.size)
    except GdbstubRequestFailed:
        return MemoryFault(read.address, read.size, kind=space.kind, why="not mapped")


def _doing(reads: Sequence[MemoryRead], space: Space) -> str:
    more = f" and {len(reads) - 1} more" if len(reads) > 1 else ""
    return f"read {reads[0].size} bytes at {space.kind} address {reads[0].address:#x}{more}"
