"""What mosquitto's log tells: its last words, and whom it has refused without anybody else being told."""

import asyncio
import re
import secrets
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from qvmi.bus.refusals import Refusals

__all__ = ["MAX_SUBSCRIPTIONS", "BrokerLog"]

_MAX_LINES: Final = 40
"""Lines kept for the error that says why mosquitto ended."""

_MAX_LINE: Final = 1024
"""Bytes of a line; a client's name in it has at most 128."""

_REFUSED: Final = re.compile(
    r"\d+: Client (.{1,200}) disconnected"
    r"(?:, (not authorised)| due to (oversize packet|malformed packet|protocol error))\."
)
_NONCE_BYTES: Final = 16
"""Random bytes in the name of a probe: 128 bits, which nobody else guesses."""

_MAX_PROBES: Final = 16
"""Probes whose refusal is waited for; a broker that ended meanwhile never tells of some."""

MAX_SUBSCRIPTIONS: Final = 1024
"""Topic filters of one connection: a codepack has a handful, and the broker keeps each in its memory."""

_SUBSCRIBED: Final = re.compile(r"\d+: (\S{1,200}) [0-2] (.*)")
_CONNECTED: Final = re.compile(r"\d+: New client connected from .{1,200} as (\S{1,200}) \(p\d.*")
_CUT: Final = 900
"""Characters of a line that may be cut short by mosquitto, so that two different filters look the same."""

_ROUTINE: Final = re.compile(r"\d+: (?:New connection from|New client connected from|Client ).*")


def _do_nothing(name: str) -> None:
    """This is told, and does nothing."""


class BrokerLog:
    """This follows the log of one mosquitto after the other.

    Args:
        too_many: is called with the name of a client that subscribes to too much. It may not raise.

    Attributes:
        refused: how often clients were refused or thrown out, by mosquitto's word for why.
    """

    def __init__(self, too_many: Callable[[str], None] = _do_nothing) -> None:
        self.refused: Counter[str] = Counter()
        self._too_many = too_many
        self._filters: dict[str, set[int]] = {}
        self._refusals = Refusals()
        self._probes: deque[str] = deque(maxlen=_MAX_PROBES)

    def probe(self) -> str:
        """This is a new client's name, for asking once whether the broker lets in who gives no user.

        That refusal is ours and told to nobody; whoever comes by that name a second time is a stranger.
        """
        name = f"qvmi-probe-{secrets.token_hex(_NONCE_BYTES)}"
        self._probes.append(name)
        return name

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
        if refused and refused[2] and refused[1] in self._probes:
            self._probes.remove(refused[1])
        elif refused:
            reason = refused[2] or refused[3]
            self.refused[reason] += 1
            # Whoever is not let in may call itself what it likes.
            name = "a stranger" if refused[2] else refused[1]
            self._refusals.note(name, reason)
        elif subscribed := _SUBSCRIBED.fullmatch(line):
            self._subscribed(subscribed[1], subscribed[2])
        elif connected := _CONNECTED.fullmatch(line):
            self._filters.pop(connected[1], None)
        elif line and not _ROUTINE.fullmatch(line):
            kept.append(line)

    def _subscribed(self, name: str, text: str) -> None:
        """This counts a client's filters since it connected; to ask again for one adds none."""
        filters = self._filters.setdefault(name, set())
        filters.add(hash(text) if len(text) < _CUT else len(filters))
        if len(filters) > MAX_SUBSCRIPTIONS:
            filters.clear()
            self._refusals.note(name, f"more than {MAX_SUBSCRIPTIONS} subscriptions")
            self._too_many(name)
