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
    "watched_loop",
]

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Request = dict[str, Any]

GREETING = Transcript.load("q35").greeting


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """This serves a Unix socket, each client by `handler`, and gives its path."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    # pytest's own folders have names too long for a socket.
    with tempfile.TemporaryDirectory(prefix="qvmi-") as folder:
        path = str(Path(folder) / "qmp.sock")
        server = await asyncio.start_unix_server(serve, path)
        try:
            yield path
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def greeted(answer: Callable[[Request], bytes]) -> Handler:
    """This is a QMP server that answers each request with the bytes that `answer` gives."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
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
    async with asyncio.timeout(seconds):
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
    assert complaints == []
