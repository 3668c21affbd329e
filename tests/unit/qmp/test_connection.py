"""Connecting as far as the first byte, over Unix sockets and TCP."""

import asyncio
import socket
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from contextlib import ExitStack, closing
from tempfile import TemporaryDirectory

import pytest

from qvmi.errors import NotQmp, QmpBusy, SocketUnreachable
from qvmi.host.address import TcpAddress, UnixAddress
from qvmi.qmp.connection import open_connection
from tests.asynchronous import asynchronous
from tests.unit.qmp.scripted_server import GREETING, served, served_on_port, watched_loop


async def greets(_: Reader, writer: Writer) -> None:
    writer.write(GREETING)
    await writer.drain()
    await asyncio.Event().wait()


@asynchronous
async def test_the_greeting_is_left_to_be_read() -> None:
    async with watched_loop(), served(greets) as path:
        with closing(await open_connection(UnixAddress(path), timeout_s=3)) as connection:
            assert connection.recv(4096) == GREETING


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@asynchronous
async def test_reaches_a_tcp_port(host: str) -> None:
    bound = "127.0.0.1" if host == "localhost" else host
    async with watched_loop(), served_on_port(greets, bound) as port:
        with closing(await open_connection(TcpAddress(host, port), timeout_s=3)) as connection:
            assert connection.recv(4096) == GREETING


@asynchronous
async def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    async with watched_loop():
        with pytest.raises(SocketUnreachable, match="nobody listens on that port"):
            await open_connection(TcpAddress("127.0.0.1", port), timeout_s=3)


@asynchronous
async def test_a_host_without_an_address_is_unreachable() -> None:
    async with watched_loop():
        with pytest.raises(SocketUnreachable):
            await open_connection(TcpAddress("no such host", 1), timeout_s=3)


@asynchronous
async def test_a_port_that_serves_another_client_is_busy() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        stack.enter_context(server.accept()[0])
        async with watched_loop():
            with pytest.raises(QmpBusy, match="held by this very process"):
                await open_connection(TcpAddress("127.0.0.1", port), timeout_s=3)


@asynchronous
async def test_a_full_queue_at_a_port_is_busy() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        place = server.getsockname()
        stack.enter_context(socket.create_connection(place))
        async with watched_loop():
            with pytest.raises(QmpBusy, match="queue"):
                await open_connection(TcpAddress(*place), timeout_s=0.6)


@asynchronous
async def test_a_gdbstub_that_speaks_first_is_told_to_let_its_guest_run() -> None:
    heard: list[bytes] = []

    async def stub(reader: Reader, writer: Writer) -> None:
        writer.write(b"$T02thread:01;#04")
        heard.append(await reader.readexactly(6))
        writer.write(b"+$OK#9a")

    async with watched_loop(), served(stub) as path:
        with pytest.raises(NotQmp, match="gdbstub"):
            await open_connection(UnixAddress(path), timeout_s=3)
    # `+` acknowledges, `D` detaches; 0x44 is the checksum (GDB manual, "Overview" and "Packets").
    assert heard == [b"+$D#44"]


@asynchronous
async def test_nothing_is_said_to_what_stays_silent() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder, socket.socket(socket.AF_UNIX) as server:
        path = f"{folder}/serial"
        server.bind(path)
        server.listen()
        async with watched_loop():
            with pytest.raises(NotQmp):
                await open_connection(UnixAddress(path), timeout_s=0.6)
        with closing(server.accept()[0]) as accepted:
            assert accepted.recv(4096) == b""


@asynchronous
async def test_a_queue_that_frees_in_time_is_waited_for() -> None:
    with TemporaryDirectory(prefix="qvmi-") as folder, ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(f"{folder}/s")
        server.listen(0)
        stack.enter_context(closing(waiting := socket.socket(socket.AF_UNIX)))
        waiting.connect(f"{folder}/s")
        async with watched_loop():
            opening = asyncio.create_task(open_connection(UnixAddress(f"{folder}/s"), timeout_s=10))
            await asyncio.sleep(0)
            stack.enter_context(server.accept()[0])
            loop = asyncio.get_running_loop()
            server.setblocking(False)  # noqa: FBT003 - the socket module's own signature
            accepted, _ = await loop.sock_accept(server)
            stack.enter_context(accepted).send(GREETING)
            stack.enter_context(await opening)
