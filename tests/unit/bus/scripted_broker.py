"""A broker that says what a test wants, byte for byte.

References: MQTT Version 5.0 (OASIS), 2.1 Structure of an MQTT Control Packet, 3.2 CONNACK, 3.4 PUBACK,
3.9 SUBACK, 3.11 UNSUBACK.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

__all__ = ["CONNECT", "PUBLISH", "SUBSCRIBE", "scripted_broker"]

CONNECT, PUBLISH, SUBSCRIBE, UNSUBSCRIBE = 1, 3, 8, 10

ACCEPTED = b"\x20\x03\x00\x00\x00"
"""A CONNACK with reason code 0 and no properties."""

HANG_UP = b""
"""Instead of an answer: the broker closes the connection."""


@asynccontextmanager
async def scripted_broker(
    folder: Path, answers: Mapping[int, bytes | None], *, pushed: bytes = b""
) -> AsyncIterator[Path]:
    """Listens on a socket and answers each packet by its type.

    Args:
        folder: where to put the socket.
        answers: by packet type; ``ID`` in an answer stands for the packet's identifier, None is
            silence, and nothing closes the connection. CONNECT is accepted unless told otherwise.
        pushed: sent after the answer to a SUBSCRIBE.
    """
    writers: list[asyncio.StreamWriter] = []
    table: dict[int, bytes | None] = {CONNECT: ACCEPTED, **answers}
    if pushed:
        table[SUBSCRIBE] = (table.get(SUBSCRIBE) or b"") + pushed

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await answer(reader, writer, table):
                await writer.drain()
        writer.close()

    path = folder / "scripted.sock"
    server = await asyncio.start_unix_server(serve, path)
    try:
        yield path
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, table: Mapping[int, bytes | None]
) -> bool:
    """Answers one packet as the table says; False to hang up."""
    kind, identifier = await read_packet(reader)
    data = table.get(kind)
    if data is not None:
        writer.write(data.replace(b"ID", identifier))
    return data != HANG_UP


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Reads one control packet; gives its type and the two bytes that may be its identifier."""
    header = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            break
    body = await reader.readexactly(length)
    if header >> 4 == PUBLISH:
        topic_length = int.from_bytes(body[:2], "big")
        return PUBLISH, body[2 + topic_length : 4 + topic_length]
    return header >> 4, body[:2]
