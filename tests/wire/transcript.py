"""Conversations with a real QEMU, as they are kept in the ``*.txt`` files beside this one.

A file begins with ``#`` lines: QEMU's version, its command line, what the guest did. Then each line is
one message: ``S:`` from QEMU, ``C:`` from the client; the answer to a request is the next ``S:`` line.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["NAMES", "Transcript"]

_FOLDER = Path(__file__).parent
NAMES = tuple(
    sorted(path.stem for path in _FOLDER.glob("*.txt") if not path.stem.startswith("stub_"))
)


@dataclass(frozen=True, slots=True)
class Transcript:
    """This is one recorded conversation.

    Attributes:
        header: the ``#`` lines.
        greeting: QEMU's first line.
        answers: QEMU's answers, by the request that they followed.
    """

    header: tuple[str, ...]
    greeting: bytes
    answers: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, name: str) -> "Transcript":
        """This reads a recording."""
        lines = (_FOLDER / f"{name}.txt").read_text().splitlines()
        header = tuple(line for line in lines if line.startswith("#"))
        greeting, *messages = [line for line in lines if not line.startswith("#")]
        requests = [_key(json.loads(line[3:])) for line in messages if line.startswith("C: ")]
        replies = [json.loads(line[3:]) for line in messages if line.startswith("S: ")]
        return cls(
            header, greeting[3:].encode() + b"\r\n", dict(zip(requests, replies, strict=True))
        )

    def answer(self, request: dict[str, Any]) -> bytes:
        """This is what QEMU answered to the same request, with this request's id."""
        reply = self.answers[_key(request)] | {"id": request.get("id")}
        return json.dumps(reply).encode() + b"\r\n"

    def printed(self, line: str) -> str:
        """This is what the human monitor printed, as `Monitor.hmp` hands it on."""
        key = _key({"execute": "human-monitor-command", "arguments": {"command-line": line}})
        return str(self.answers[key]["return"]).replace("\r\n", "\n")

    def returned(self, command: str, **arguments: object) -> Any:  # noqa: ANN401 - any JSON
        """This is what a command returned."""
        return self.answers[_key({"execute": command, "arguments": arguments})]["return"]


def _key(request: dict[str, Any]) -> str:
    return json.dumps([request["execute"], request.get("arguments") or {}], sort_keys=True)
