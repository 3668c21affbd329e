"""Letting go of a gdbstub that was taken for QMP: what recorded stubs, and odd ones, are told."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from qvmi.qmp.stray_stub import let_run, let_run_unless_it_stood
from tests.asynchronous import asynchronous
from tests.wire.stub_transcript import StubTranscript

DETACH = b"D"
ASK_VERSION = b"qRcmd,696e666f2076657273696f6e"
_REQUEST = re.compile(rb"\$([^#]*)#([0-9a-f]{2})")


@asynccontextmanager
async def stub(
    answer: Callable[[bytes], bytes],
) -> AsyncIterator[tuple[socket.socket, list[bytes]]]:
    """This is a connection to a stub, and what it is asked, each with a checksum that is right."""
    ours, its = socket.socketpair()
    asked: list[bytes] = []
    ours.setblocking(False)  # noqa: FBT003 - the socket module's own signature

    async def serve() -> None:
        reader, writer = await asyncio.open_connection(sock=its)
        heard = b""
        while more := await reader.read(1 << 12):
            heard += more
            for body, checksum in _REQUEST.findall(heard):
                assert sum(body) & 255 == int(checksum, 16)
                asked.append(body)
                writer.write(answer(body))
            heard = heard[heard.rfind(b"#") + 3 :] if b"#" in heard else heard
        writer.close()

    serving = asyncio.ensure_future(serve())
    try:
        yield ours, asked
    finally:
        ours.close()
        with suppress(ConnectionError):
            await serving


def recorded(name: str) -> Callable[[bytes], bytes]:
    return StubTranscript.load(name).wire


@pytest.mark.parametrize(
    ("name", "told"),
    [("stub_x86_64", [ASK_VERSION]), ("stub_x86_64-10.0", [ASK_VERSION, DETACH])],
)
@asynchronous
async def test_a_silent_stub_is_detached_from_where_it_would_not_tell(
    name: str, told: list[bytes]
) -> None:
    async with stub(recorded(name)) as (connection, asked):
        await let_run_unless_it_stood(connection)
    assert asked == told


@pytest.mark.parametrize(
    "answer",
    [b"", b"$OK#9a", b"$O37#01$OK#9a", b"$O#4f$OK#9a", b"x" * 100_000, b"$Ozz#00$OK#9a"],
    ids=["silence", "no version", "half a version", "nothing", "noise", "no digits"],
)
@asynchronous
async def test_a_stub_of_unknown_release_is_detached_from(answer: bytes) -> None:
    async with stub(lambda _: answer) as (connection, asked):
        await let_run_unless_it_stood(connection)
    assert asked == [ASK_VERSION, DETACH]


@asynchronous
async def test_a_stub_that_has_stopped_its_guest_is_detached_from() -> None:
    async with stub(recorded("stub_x86_64")) as (connection, asked):
        await let_run(connection)
    assert asked == [DETACH]


@asynchronous
async def test_a_connection_that_is_closed_is_nothing_to_let_go_of() -> None:
    ours, its = socket.socketpair()
    ours.setblocking(False)  # noqa: FBT003 - the socket module's own signature
    its.close()
    await let_run_unless_it_stood(ours)
    ours.close()
