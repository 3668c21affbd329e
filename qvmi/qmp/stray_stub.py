"""Lets go of a gdbstub that was taken for a QMP socket, and leaves its guest as it was where that is known.

References: GDB manual, "Packets"; QEMU ``gdbstub.c`` (``gdb_chr_event``: whoever is connected stops the
guest, and leaving without detaching leaves it so).

A stub that speaks first says that it has stopped a guest that ran. One that is silent had nothing to stop,
up to QEMU 8.0; later ones never tell, and a guest that ran must not be left standing.
"""

import asyncio
import re
import socket
from binascii import unhexlify
from contextlib import suppress
from typing import Final

__all__ = ["let_run", "let_run_unless_it_stood"]

_DETACH: Final = b"+$D#44"
_ASK_VERSION: Final = (
    b"+$qRcmd,696e666f2076657273696f6e#e8"  # "info version", in hexadecimal digits
)
_VERSION: Final = re.compile(rb"\$O((?:[0-9a-f]{2})+)#")
_NUMBERS: Final = re.compile(rb"(\d{1,4})\.(\d{1,4})")
_OK: Final = b"$OK#"
_SILENT_SINCE: Final = (8, 1)
_ANSWERS_S: Final = 0.3
_CHUNK: Final = 256  # bytes
_MAX_HEARD: Final = 4096  # bytes; an answer has some 100


async def let_run(connection: socket.socket) -> None:
    """This detaches from a stub that has stopped a running guest, which goes on."""
    await _answer(connection, _DETACH)


async def let_run_unless_it_stood(connection: socket.socket) -> None:
    """This detaches from a stub that was silent, unless it is one that would have told of a stop."""
    shown = _VERSION.search(await _answer(connection, _ASK_VERSION))
    version = _NUMBERS.search(unhexlify(shown[1])) if shown else None
    if version is None or (int(version[1]), int(version[2])) >= _SILENT_SINCE:
        await let_run(connection)


async def _answer(connection: socket.socket, request: bytes) -> bytes:
    """This is what a stub says to a request, as far as it says anything in time."""
    loop = asyncio.get_running_loop()
    heard = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWERS_S):
            await loop.sock_sendall(connection, request)
            while _OK not in heard and len(heard) < _MAX_HEARD:
                more = await loop.sock_recv(connection, _CHUNK)
                if not more:
                    break
                heard += more
    return heard
