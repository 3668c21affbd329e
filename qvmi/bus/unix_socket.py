"""Whether something accepts connections on a Unix socket."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["MAX_SOCKET_PATH", "accepts"]

MAX_SOCKET_PATH: Final = 107
"""Bytes in the path of a Unix socket: ``sockaddr_un.sun_path`` less its NUL."""

_ACCEPT_TIMEOUT_S: Final = 1.0
"""Longest wait for a place in the listener's queue."""


async def accepts(socket: Path) -> bool:
    """This connects, leaves at once, and tells whether that worked."""
    try:
        async with asyncio.timeout(_ACCEPT_TIMEOUT_S):
            _, writer = await asyncio.open_unix_connection(socket)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True
