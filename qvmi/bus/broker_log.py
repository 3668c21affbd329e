"""What mosquitto's log tells: its last words, and whom it has refused without anybody else being told."""

import asyncio
import re
from collections import Counter, deque
from typing import Final

from qvmi.bus.refusals import Refusals

__all__ = ["BrokerLog"]

_MAX_LINES: Final = 40
"""Lines kept for the error that says why mosquitto ended."""

_MAX_LINE: Final = 1024
"""Bytes of a line; a client's name in it has at most 128."""

_REFUSED: Final = re.compile(
    r"\d+: Client (.{1,200}) disconnected"
    r"(?:, (not authorised)| due to (oversize packet|malformed packet|protocol error))\."
)
_ROUTINE: Final = re.compile(r"\d+: (?:New connection from|New client connected from|Client ).*")


class BrokerLog:
    """This follows the log of one mosquitto after the other.

    Attributes:
        refused: how often clients were refused or thrown out, by mosquitto's word for why.
    """

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self._refusals = Refusals()

    async def follow(self, stream: asyncio.StreamReader | None) -> str:
        """This reads a log to its end and returns the last of it as one line."""
        kept: deque[str] = deque(maxlen=_MAX_LINES)
        rest = b""
        while stream is not None and (data := await stream.read(_MAX_LINE)):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-_MAX_LINE:]
            for line in lines:
                self._take(line.decode("utf-8", "backslashreplace").strip(), kept)
        self._take(rest.decode("utf-8", "backslashreplace").strip(), kept)
        return "; ".join(kept) or "it said nothing"

    def _take(self, line: str, kept: deque[str]) -> None:
        refused = _REFUSED.fullmatch(line)
        if refused:
            reason = refused[2] or refused[3]
            self.refused[reason] += 1
            # Whoever is not let in may call itself what it likes.
            name = "a stranger" if refused[2] else refused[1]
            self._refusals.note(name, reason)
        elif line and not _ROUTINE.fullmatch(line):
            kept.append(line)
