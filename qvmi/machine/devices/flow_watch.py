"""Which process has which flow: what passes a network card, joined with the guest's sockets.

A round reads what was captured, then looks at the sockets.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Final

import msgspec

from qvmi.addr import Va
from qvmi.machine.devices.flow_owners import FlowOwners
from qvmi.machine.devices.network_capture import NetworkCapture
from qvmi.network.flows import FlowKey, FlowRecord, FlowTable
from qvmi.network.packets import parse_frame
from qvmi.semantics.guest_os import Gap, GuestOS, Listing, Process, Socket
from qvmi.view import Provenance

__all__ = ["Flow", "FlowWatch", "Look", "look_of"]

_ROUND_S: Final = 0.5
"""From one look at the sockets to the next."""
_FRAMES_A_TURN: Final = 256
"""Frames that are read before others on the event loop have a turn: some 5 ms of work."""


class Flow(msgspec.Struct, frozen=True, gc=False):
    """This is what passed between the guest and somebody else.

    Args:
        protocol: ``tcp`` or ``udp``.
        local: the guest's end, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``.
        remote: the other end.
        name: that an answer of DNS has told the remote address for; empty where there was none.
        packets_out: that the guest has sent.
        packets_in: that it was sent.
        bytes_out: of whole frames, likewise.
        bytes_in: of whole frames, likewise.
        pid: of a process that has its socket open; None where none has.
        process: the name of that process; the guest's word.
        socket: address of the ``struct sock``; None where none was found.
        unowned: whether it lived long enough for a socket to be seen, and none was.
    """

    protocol: str
    local: str
    remote: str
    name: str
    packets_out: int
    packets_in: int
    bytes_out: int
    bytes_in: int
    pid: int | None
    process: str
    socket: Va | None
    unowned: bool


class Look(msgspec.Struct, frozen=True):
    """This is one look at the guest's sockets, and at who has them."""

    sockets: tuple[Socket, ...]
    processes: tuple[Process, ...]
    gaps: tuple[Gap, ...]
    provenance: Provenance


class FlowWatch:
    """This watches the flows of a machine, each time for a while, one time after the other.

    The names that DNS has told are kept from one time to the next: a flow may be older than a watching.

    Args:
        capture: captures at the netdev of that id, None for the only one, while a block lasts.
        look: looks at the guest's sockets.
    """

    def __init__(
        self,
        capture: Callable[[str | None], AbstractAsyncContextManager[NetworkCapture]],
        look: Callable[[], Awaitable[Look]],
    ) -> None:
        self._capture = capture
        self._look = look
        self._names: OrderedDict[str, str] = OrderedDict()
        self._watching = asyncio.Lock()

    async def watch(
        self,
        seconds: float,
        *,
        netdev: str | None = None,
        round_s: float = _ROUND_S,
        least_looks: int = 1,
    ) -> Listing[Flow]:
        """This watches for so long, and lists the flows that were seen, the oldest first.

        Args:
            seconds: how long.
            netdev: id of what is behind the card; None for the only one.
            round_s: seconds from one look at the sockets to the next.
            least_looks: looks at the sockets that are taken, though the time is over.

        Raises:
            PolicyDenied, UsageError, PauseError: as `capturing`.
            CorruptCapture: what QEMU wrote is no capture.
            UnknownGuest, StaleView: nobody knows which system runs there.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        table, owners = FlowTable(self._names), FlowOwners()
        gaps: dict[Gap, None] = {}
        loop = asyncio.get_running_loop()
        number, look = 0, None
        async with self._watching, self._capture(netdev) as capture:
            until = loop.time() + seconds
            while look is None or (
                not capture.is_full and (number < least_looks or loop.time() < until)
            ):
                await _drain(capture, table, number)
                look = await self._look()
                gaps.update(dict.fromkeys(look.gaps))
                # A guest can have so many sockets that this takes a second or two.
                await asyncio.to_thread(_join, owners, table, look, number)
                number += 1
                left_s = round_s if number < least_looks else until - loop.time()
                await asyncio.sleep(max(0.0, min(round_s, left_s)))
            await _drain(capture, table, number)
        gaps.update(dict.fromkeys(_missed(capture, table)))
        rows = tuple(_row(key, record, table, owners) for key, record in table.flows.items())
        return Listing(rows, tuple(gaps), look.provenance)


def look_of(guest: GuestOS) -> Look:
    """This looks at the sockets and processes of a guest."""
    sockets, processes = guest.sockets(), guest.processes()
    return Look(
        sockets.items, processes.items, (*sockets.gaps, *processes.gaps), sockets.provenance
    )


def _join(owners: FlowOwners, table: FlowTable, look: Look, number: int) -> None:
    owners.see(table.flows, look.sockets, look.processes, number=number, is_whole=not look.gaps)


async def _drain(capture: NetworkCapture, table: FlowTable, now: int) -> None:
    """This notes what was captured; others have their turns meanwhile, however much that is."""
    for count, one in enumerate(capture.drain(), start=1):
        table.note(parse_frame(one.frame), one.size, sent=one.sent, now=now)
        if count % _FRAMES_A_TURN == 0:
            await asyncio.sleep(0)


def _missed(capture: NetworkCapture, table: FlowTable) -> Iterator[Gap]:
    if capture.is_full:
        yield Gap("capture", None, "it is full: what came after that is not in it")
    if table.dropped:
        yield Gap("flows", None, f"there were too many: the {table.dropped} oldest were forgotten")


def _row(key: FlowKey, record: FlowRecord, table: FlowTable, owners: FlowOwners) -> Flow:
    owner = owners.of(key)
    return Flow(
        protocol=key.protocol,
        local=_shown(key.version, key.local, key.local_port),
        remote=_shown(key.version, key.remote, key.remote_port),
        name=table.names.get(key.remote, ""),
        packets_out=record.packets_out,
        packets_in=record.packets_in,
        bytes_out=record.bytes_out,
        bytes_in=record.bytes_in,
        pid=None if owner is None else owner.socket.pid,
        process="" if owner is None else owner.process,
        socket=None if owner is None else owner.socket.address,
        unowned=owners.is_unowned(key, record),
    )


def _shown(version: int, address: str, port: int) -> str:
    return f"{address}:{port}" if version == 4 else f"[{address}]:{port}"  # noqa: PLR2004 - of IP
