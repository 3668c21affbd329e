"""Servers that do what no QEMU should, and one that repeats what a real QEMU said."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.wire.transcript import Transcript

__all__ = [
    "GREETING",
    "Handler",
    "answer_everything",
    "greeted",
    "replayed",
    "served",
    "served_on_port",
    "watched_loop",
]

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Request = dict[str, Any]

GREETING = Transcript.load("q35").greeting


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """This serves a Unix socket, each client by `handler`, and gives its path."""
    # pytest's own folders have names too long for a socket.
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        path = str(Path(folder) / "qmp.sock")
        clients = _Clients(handler)
        async with clients.served_by(await asyncio.start_unix_server(clients.serve, path)):
            yield path


@asynccontextmanager
async def served_on_port(handler: Handler, host: str) -> AsyncIterator[int]:
    """This serves a TCP port, each client by `handler`, and gives its number."""
    clients = _Clients(handler)
    server = await asyncio.start_server(clients.serve, host, 0)
    async with clients.served_by(server):
        yield server.sockets[0].getsockname()[1]


class _Clients:
    """This serves clients until it is told to end, and then ends them all."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """This serves one client."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    @asynccontextmanager
    async def served_by(self, server: asyncio.Server) -> AsyncIterator[None]:
        """This ends the server and its clients with the block."""
        try:
            yield
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)


def greeted(answer: Callable[[Request], bytes], *, greeting: bytes = GREETING) -> Handler:
    """This is a QMP server that answers each request with the bytes that `answer` gives."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        while line := await reader.readline():
            writer.write(answer(json.loads(line)))
            await writer.drain()

    return handle


def answer_everything(request: Request) -> bytes:
    """This is the empty answer to any request."""
    return json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n"


def replayed(transcript: Transcript) -> Handler:
    """This is the QEMU that was recorded."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(transcript.greeting)
        while line := await reader.readline():
            writer.write(transcript.answer(json.loads(line)))
            await writer.drain()

    return handle


@asynccontextmanager
async def watched_loop(seconds: float = 20.0) -> AsyncIterator[None]:
    """This fails a test whose block takes too long, or leaves an error or a task behind."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    before = asyncio.all_tasks()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    async with asyncio.timeout(seconds):
        yield
        if left := asyncio.all_tasks() - before:
            await asyncio.wait(left)
    assert complaints == []
