"""What one client says and is told: others wait neither for one that never ends, nor for a deaf one."""

import asyncio
import socket
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

__all__ = ["MAX_WAITING", "Outlet", "hear", "talk"]

MAX_WAITING: Final = 16 << 20
"""Bytes that may wait for one client: an answer of QEMU's has at most 10 MB, and events come beside it."""

_SEND_S: Final = 10.0
"""How long a client may read nothing while something waits for it; tools read within milliseconds."""
_PIECE: Final = 1 << 16


class Outlet:
    """This says things to one client, in order."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._waiting = bytearray()
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._overrun = False

    def say(self, data: bytes) -> None:
        """This says something behind all that was said before; it never waits."""
        if len(self._waiting) + len(data) > MAX_WAITING:
            self._overrun = True
        else:
            self._waiting += data
            self._empty.clear()
        self._news.set()

    async def heard(self) -> None:
        """This waits until all that was said is in the kernel's hands."""
        await self._empty.wait()

    async def run(self) -> None:
        """This hands on what is said, until the client does not listen any more.

        Raises:
            OSError: it has gone. TimeoutError is one: it does not listen.
        """
        loop = asyncio.get_running_loop()
        while not self._overrun:
            if not self._waiting:
                self._empty.set()
                self._news.clear()
                await self._news.wait()
                continue
            piece = bytes(self._waiting[:_PIECE])
            del self._waiting[: len(piece)]
            async with asyncio.timeout(_SEND_S):
                await loop.sock_sendall(self._connection, piece)


async def hear(connection: socket.socket) -> bytes:
    """This is what the client says next; empty where it has hung up."""
    # There is always more of one that says much and wants no answer: then nobody else would get a turn.
    await asyncio.sleep(0)
    return await asyncio.get_running_loop().sock_recv(connection, _PIECE)


async def talk(outlet: Outlet, *parts: Awaitable[None]) -> None:
    """This does several things for one client until the first of them has ended, or it does not listen."""
    tasks = {asyncio.ensure_future(part) for part in (*parts, outlet.run())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        with suppress(OSError):
            task.result()
