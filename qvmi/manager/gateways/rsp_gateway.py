"""The RSP gateway: serves many debuggers over one gdbstub."""

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Final

from qvmi.audit import LOGGER
from qvmi.machine.completion import to_the_end
from qvmi.manager.gateways.debug_session import DebugSession
from qvmi.manager.gateways.doorway import Visitor
from qvmi.manager.gateways.guest_memory import GuestMemory
from qvmi.manager.gateways.outlet import Outlet, hear, talk
from qvmi.manager.gateways.qmp_gateway import MAX_REFUSALS
from qvmi.manager.gateways.rsp_requests import Damage, Packet, Packets, Signal
from qvmi.manager.gateways.shared_stub import SharedStub
from qvmi.manager.gateways.standstill import Standstill
from qvmi.policy import Policy, PolicyGate

__all__ = ["RspGateway"]

_FAREWELL_S: Final = 2.0
"""How long a debugger may take to hang up that is told no more; gdb does so at once."""

_audit: Final = logging.getLogger(LOGGER)


class RspGateway:
    """This serves the debuggers of one machine.

    Args:
        standstill: who keeps the guest from running.
        stub: the gdbstub that all share.
        policy: what each client may do.
        memory: tells what is memory.
    """

    def __init__(
        self,
        standstill: Standstill,
        stub: SharedStub,
        policy: Policy,
        memory: GuestMemory,
    ) -> None:
        self._standstill = standstill
        self._stub = stub
        self._policy = policy
        self._memory = memory

    async def serve(self, connection: socket.socket, visitor: Visitor) -> None:
        """This serves one debugger until it has gone; a guest that stood still for it goes on then."""
        outlet = Outlet(connection)
        gate = PolicyGate(str(visitor), self._policy)
        session = DebugSession(
            visitor,
            gate,
            standstill=self._standstill,
            stub=self._stub,
            memory=self._memory,
            outlet=outlet,
        )
        try:
            listening = _listen(connection, visitor, session, outlet)
            limit = self._standstill.too_long(session, gate.longest_pause_s)
            await talk(outlet, listening, limit)
        finally:
            await to_the_end(session.end())


async def _listen(
    connection: socket.socket, visitor: Visitor, session: DebugSession, outlet: Outlet
) -> None:
    packets = Packets()
    while data := await hear(connection):
        for piece in packets.feed(data):
            going = await _taken(piece, visitor, session, outlet)
            # What is asked next waits until this was heard: nobody can pile up answers.
            await outlet.heard()
            if session.parting:
                await _until_hung_up(connection)
            if not going or session.refusals >= MAX_REFUSALS:
                return


async def _until_hung_up(connection: socket.socket) -> None:
    """This lets a debugger read the last words: one that may still write finds no broken connection first."""
    connection.shutdown(socket.SHUT_WR)
    with suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            while await hear(connection):
                pass


async def _taken(
    piece: Packet | Signal | Damage, visitor: Visitor, session: DebugSession, outlet: Outlet
) -> bool:
    """This answers one piece of what a debugger says; False where nothing behind it counts."""
    if isinstance(piece, Packet):
        outlet.say(b"+")
        return await session.packet(piece.body)
    if isinstance(piece, Damage):
        _audit.warning("refused: %s: %s", visitor, piece.problem)
        session.refusals += 1
        outlet.say(b"-")
        return not piece.fatal
    if piece is Signal.INTERRUPT:
        await session.interrupt()
        return True
    _audit.warning("refused: %s: asks for an answer again, which nothing can have damaged", visitor)
    return False
