"""Opens a connection to what listens at an address, as far as the first byte of a QMP greeting.

References: QEMU ``docs/interop/qmp-spec.rst`` (section 2.2, server greeting).
"""

import asyncio
import socket
from typing import Final

from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.host.peer import look_at_peer
from qvmi.host.stream import open_stream
from qvmi.qmp.diagnosis import (
    GDBSTUB,
    foreign_speech,
    is_gdbstub,
    queue_full,
    silence,
    verdict,
)
from qvmi.qmp.stray_stub import let_run, let_run_unless_it_stood

__all__ = ["open_connection"]

# QEMU greets within a millisecond of accepting. After this long it is worth asking the kernel
# whether another client is being served; only its clear yes ends the wait early.
_SILENCE_S: Final = 0.3
# The part of the caller's time that is kept back for finding out why nothing came.
_KEPT_BACK: Final = 0.15
# A process that is being killed closes its connections before it stops listening: whoever connects
# in between is hung up on, and told why only at the next attempt.
_ENDING_S: Final = 0.3
_RETRY_S: Final = 0.02
_PEEK: Final = 256  # bytes; a greeting has about 150, and its first is enough


async def open_connection(address: UnixAddress | TcpAddress, *, timeout_s: float) -> socket.socket:
    """This connects and waits for the first byte of a greeting, which stays to be read.

    Raises:
        SocketUnreachable: nobody listens, or the socket may not be opened.
        NotQmp: what listens there speaks something else, or is known to be no QMP.
        QmpBusy: another client is being served.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    deadline = started + timeout_s * (1 - _KEPT_BACK)
    while True:
        connection = await _connect(address, deadline)
        try:
            first = await _greeting(address, connection, deadline)
        except BaseException:
            connection.close()
            raise
        if first:
            return connection
        connection.close()
        if loop.time() > min(deadline, started + _ENDING_S):
            raise foreign_speech(address, first)
        await asyncio.sleep(_RETRY_S)


async def _connect(address: UnixAddress | TcpAddress, deadline: float) -> socket.socket:
    try:
        return await open_stream(address, deadline=deadline)
    except TimeoutError as error:
        raise await asyncio.to_thread(queue_full, address) from error


async def _greeting(
    address: UnixAddress | TcpAddress, connection: socket.socket, deadline: float
) -> bytes:
    """These are the first bytes of a greeting, left to be read; b"" after a close without any."""
    loop = asyncio.get_running_loop()
    first = await _first_bytes(connection, min(deadline, loop.time() + _SILENCE_S))
    if first is None:
        peer = await asyncio.to_thread(look_at_peer, connection)
        certain = verdict(address, peer)
        if is_gdbstub(address, peer):
            await let_run_unless_it_stood(connection)
        if certain is not None:
            raise certain
        first = await _first_bytes(connection, deadline)
    if first is None:
        raise silence(address, await asyncio.to_thread(look_at_peer, connection))
    if first.startswith(GDBSTUB):
        await let_run(connection)
    if first and not first.lstrip().startswith(b"{"):
        raise foreign_speech(address, first)
    return first


async def _first_bytes(connection: socket.socket, deadline: float) -> bytes | None:
    """These are the bytes that have come, left to be read; b"" after a close, None for none."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout_at(deadline):
            await readable.wait()
        return connection.recv(_PEEK, socket.MSG_PEEK)
    except TimeoutError:
        return None
    except OSError:
        return b""
    finally:
        loop.remove_reader(connection)
