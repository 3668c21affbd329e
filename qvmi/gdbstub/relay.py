"""Carries bytes between a debugger and a gdbstub, through a gate, until one of them has gone."""

import asyncio
import socket
from contextlib import suppress
from typing import Final

from qvmi.gdbstub.gate import Gate

__all__ = ["relay"]

_CHUNK: Final = 1 << 16
"""Bytes; a packet of QEMU's has 4 KiB."""
_FAREWELL_S: Final = 1.0
"""How long a debugger that lets go may take to hang up; gdb does so at once."""


async def relay(debugger: socket.socket, stub: socket.socket, gate: Gate) -> None:
    """This ends when the debugger has let go or is gone, or the stub is; it closes neither.

    Args:
        debugger: a connection that does not block.
        stub: a connection that does not block.
        gate: decides what passes.

    Raises:
        GdbstubProtocolError: what the debugger says is no remote serial protocol.
        OSError: a connection was cut.
    """
    names = ("qvmi gdb says", "qvmi gdb hears")
    says = asyncio.create_task(_carry_out(debugger, stub, gate), name=names[0])
    hears = asyncio.create_task(_carry_back(stub, debugger), name=names[1])
    try:
        done, _ = await asyncio.wait({says, hears}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        says.cancel()
        hears.cancel()
        await asyncio.wait({says, hears})
    for one in done:
        one.result()


async def _carry_out(debugger: socket.socket, stub: socket.socket, gate: Gate) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(debugger, _CHUNK):
        passage = gate.feed(data)
        if passage.to_stub:
            await loop.sock_sendall(stub, passage.to_stub)
        if passage.to_debugger:
            await loop.sock_sendall(debugger, passage.to_debugger)
        if passage.left:
            await _farewell(debugger)
            return


async def _farewell(debugger: socket.socket) -> None:
    """This waits until the debugger has hung up, which takes it for an error when it is not the first."""
    loop = asyncio.get_running_loop()
    with suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            while await loop.sock_recv(debugger, _CHUNK):
                pass


async def _carry_back(stub: socket.socket, debugger: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(stub, _CHUNK):
        await loop.sock_sendall(debugger, data)
