"""Stubs that say what a recorded QEMU said, and what no QEMU should."""

import re
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable

from qvmi.gdbstub.rsp import frame
from tests.unit.qmp.scripted_server import Handler
from tests.wire.stub_transcript import StubTranscript

__all__ = ["Answer", "recorded", "scripted"]

Answer = Callable[[bytes], bytes | None]
"""The bytes that a request is answered with; None stands for what was recorded."""

_RESUMES = b"vCont;"  # answered when the guest stops
_REQUEST = re.compile(rb"\$([^#]*)#[0-9a-f]{2}|(\x03)")


def recorded(name: str = "stub_x86_64") -> Handler:
    """This is the stub that was recorded."""
    return scripted(lambda _: None, name=name)


def scripted(
    answer: Answer, *, name: str = "stub_x86_64", greeting: bytes | None = None
) -> Handler:
    """This is a recorded stub that answers some requests in its own way."""
    transcript = StubTranscript.load(name)
    first = greeting if greeting is not None else b"".join(map(frame, transcript.greeting))

    async def handle(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(first)
        heard = b""
        while more := await reader.read(1 << 16):
            heard += more
            end = 0
            for match in _REQUEST.finditer(heard):
                end = match.end()
                request = match[1] if match[2] is None else match[2]
                own = answer(request)
                if own is None:
                    own = b"" if request.startswith(_RESUMES) else transcript.wire(request)
                writer.write(own)
            heard = heard[end:]
            await writer.drain()

    return handle
