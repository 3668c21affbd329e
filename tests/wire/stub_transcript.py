"""Conversations with a real gdbstub, as they are kept in the ``stub_*.txt`` files beside this one.

A file begins with ``#`` lines: QEMU's version, its command line, what the guest did. Then ``C:`` lines
are the bodies of requests, and the ``S:`` lines behind one are the packets that came for it, as Python
writes bytes, before the first request too.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from qvmi.gdbstub.rsp import escape, frame

__all__ = ["STUB_NAMES", "StubTranscript"]

_FOLDER = Path(__file__).parent
STUB_NAMES = sorted(path.stem for path in _FOLDER.glob("stub_*.txt"))


@dataclass(frozen=True, slots=True)
class StubTranscript:
    """This is one recorded conversation.

    Attributes:
        header: the ``#`` lines.
        greeting: what came before anything was asked.
        answers: the packets' bodies by request.
    """

    header: tuple[str, ...]
    greeting: tuple[bytes, ...]
    answers: dict[bytes, tuple[bytes, ...]]

    @classmethod
    def load(cls, name: str) -> "StubTranscript":
        """This reads a recording."""
        lines = (_FOLDER / f"{name}.txt").read_text().splitlines()
        answers: dict[bytes, list[bytes]] = {}
        heard: list[bytes] = []
        greeting = heard
        for line in lines:
            if line.startswith("C: "):
                # What is asked again is answered as it was the last time.
                heard = answers[ast.literal_eval(line[3:])] = []
            elif line.startswith("S: "):
                heard.append(ast.literal_eval(line[3:]))
        header = tuple(line for line in lines if line.startswith("#"))
        return cls(header, tuple(greeting), {asked: tuple(said) for asked, said in answers.items()})

    def reply(self, request: str) -> bytes:
        """This is the last packet that came for a request."""
        return self.answers[request.encode()][-1]

    def documents(self) -> dict[str, bytes]:
        """These are the documents of the target description, put together."""
        found: dict[str, bytes] = {}
        for request in self.answers:
            if request.startswith(b"qXfer:features:read:"):
                name = request.split(b":")[3].decode()
                part = self.reply(request.decode())
                if part[:1] in {b"l", b"m"}:
                    found[name] = found.get(name, b"") + part[1:]
        return found

    def wire(self, request: bytes) -> bytes:
        """This is what the stub sent when it was asked this."""
        return b"+" + b"".join(frame(escape(body)) for body in self.answers.get(request, (b"",)))
