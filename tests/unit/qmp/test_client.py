"""What qvmi changes in qemu.qmp's client: a newer release that ignores it is noticed here."""

import asyncio
import io
import json
import logging
import socket
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from typing import Any

import pytest

from qvmi.qmp.client import Client, Reply
from tests.asynchronous import asynchronous
from tests.unit.qmp.scripted_server import (
    GREETING,
    answer_everything,
    greeted,
    served,
    watched_loop,
)


async def connected(path: str) -> Client:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    connection.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    client = Client()
    await client.connect(connection)
    return client


@asynchronous
async def test_events_go_to_the_callback_and_nowhere_else() -> None:
    def answer(request: dict[str, Any]) -> bytes:
        return b'{"event": "STOP"}\n' * 100 + answer_everything(request)

    taken: list[Reply] = []
    async with watched_loop(), served(greeted(answer)) as path:
        client = await connected(path)
        client.start(taken.append)
        await client.ask("anything", {})
        assert [reply.event for reply in taken] == ["STOP"] * 200
        assert client.events.empty()
        assert client.events.history == ()
        await client.disconnect()


@asynchronous
async def test_commands_of_one_turn_go_out_in_one_write() -> None:
    chunks: list[bytes] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        while chunk := await reader.read(1 << 16):
            chunks.append(chunk)
            for line in chunk.splitlines():
                writer.write(answer_everything(json.loads(line)))

    async with watched_loop(), served(handle) as path:
        client = await connected(path)
        client.start(lambda _: None)
        await asyncio.gather(*(client.ask(f"command-{n}", {}) for n in range(5)))
        assert commands_in(chunks[0]) == ["qmp_capabilities", *(f"command-{n}" for n in range(5))]
        await client.disconnect()


@asynchronous
async def test_commands_of_tasks_of_tasks_go_out_in_one_write() -> None:
    chunks: list[bytes] = []

    async def ask(client: Client, depth: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(client.ask(f"command-{depth}", {}))
            if depth < 3:
                group.create_task(ask(client, depth + 1))

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(GREETING)
        while chunk := await reader.read(1 << 16):
            chunks.append(chunk)
            for line in chunk.splitlines():
                writer.write(answer_everything(json.loads(line)))

    async with watched_loop(), served(handle) as path:
        client = await connected(path)
        client.start(lambda _: None)
        await ask(client, 0)
        assert commands_in(chunks[0]) == ["qmp_capabilities", *(f"command-{n}" for n in range(4))]
        await client.disconnect()


def commands_in(chunk: bytes) -> list[str]:
    return [json.loads(line)["execute"] for line in chunk.splitlines()]


@pytest.mark.parametrize(
    ("offered", "arguments"), [(["oob"], {"enable": ["oob"]}), ([], {}), (["other"], {})]
)
@asynchronous
async def test_reading_ahead_is_asked_for_where_it_is_offered(
    offered: list[str], arguments: dict[str, object]
) -> None:
    greeting = json.loads(GREETING)
    greeting["QMP"]["capabilities"] = offered
    requests: list[dict[str, Any]] = []

    async def handle(reader: Reader, writer: Writer) -> None:
        writer.write(json.dumps(greeting).encode() + b"\n")
        while line := await reader.readline():
            requests.append(json.loads(line))
            writer.write(answer_everything(requests[-1]))

    async with watched_loop(), served(handle) as path:
        client = await connected(path)
        client.start(lambda _: None)
        await client.ask("anything", {})
        assert requests[0]["execute"] == "qmp_capabilities"
        assert requests[0]["arguments"] == arguments
        await client.disconnect()


@asynchronous
async def test_messages_are_not_formatted_for_a_log() -> None:
    async with watched_loop(), served(greeted(answer_everything)) as path:
        logger = logging.getLogger("qemu.qmp")
        logged = io.StringIO()
        handler = logging.StreamHandler(logged)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            client = await connected(path)
            client.start(lambda _: None)
            await client.ask("anything", {"secret": 1})
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        assert "Connected" in logged.getvalue()
        assert "secret" not in logged.getvalue()
        await client.disconnect()
