"""What mosquitto's log tells: its last words, and whom it has refused without anybody else being told.

It is read by a thread. An event loop can be held up, by a codepack in this process too: the pipe would be
full after some 500 lines, and mosquitto would wait with all who speak over it, until the loop goes on.
"""

import asyncio
import os
import re
import secrets
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from qvmi.bus.refusals import Refusals, tell

__all__ = ["MAX_SUBSCRIPTIONS", "BrokerLog", "FollowedLog"]

_MAX_LINES: Final = 40
"""Lines kept for the error that says why mosquitto ended."""

LAST_WORDS_S: Final = 2.0
"""Longest wait for the end of a log once mosquitto has ended: what it has started may hold that open."""

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


class BrokerLog:
    """This follows the log of one mosquitto after the other.

    Args:
        too_many: is called in the event loop with the name of a client that subscribes to too much. It may
            not raise.

    Attributes:
        refused: how often clients were refused or thrown out, by mosquitto's word for why.
    """

    def __init__(self, too_many: Callable[[str], None]) -> None:
        self.refused: Counter[str] = Counter()
        self._too_many = too_many
        self._filters: dict[str, set[int]] = {}
        self._refusals = Refusals(lambda text: self._soon(tell, text))
        self._loop = asyncio.get_running_loop()
        self._probes: deque[str] = deque(maxlen=_MAX_PROBES)

    def probe(self) -> str:
        """This is a new client's name, for asking once whether the broker lets in who gives no user.

        That refusal is ours and told to nobody; whoever comes by that name a second time is a stranger.
        """
        name = f"qvmi-probe-{secrets.token_hex(_NONCE_BYTES)}"
        self._probes.append(name)
        return name

    @contextmanager
    def followed(self) -> Iterator["FollowedLog"]:
        """This opens a log for a mosquitto that is started within the block, and reads it to its end.

        Raises:
            OSError: it cannot be opened.
        """
        reading, writing = os.pipe()
        log = FollowedLog(writing, deque(maxlen=_MAX_LINES), self._loop.create_future())
        following = threading.Thread(
            target=self._read, args=(reading, log), name="qvmi-broker-log", daemon=True
        )
        following.start()
        try:
            yield log
        finally:
            os.close(writing)

    def _read(self, descriptor: int, log: "FollowedLog") -> None:
        """This is the thread: what is to be done about a line is done in the event loop."""
        rest = b""
        with open(descriptor, "rb", buffering=0) as stream:
            while data := stream.read(_MAX_LINE):
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-_MAX_LINE:]
                for line in lines:
                    self._take(line.decode("utf-8", "backslashreplace").strip(), log.kept)
        self._take(rest.decode("utf-8", "backslashreplace").strip(), log.kept)
        self._soon(log.end)

    def _soon(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)

    def _take(self, line: str, kept: deque[str]) -> None:
        refused = _REFUSED.fullmatch(line)
        if refused and refused[2] and self._was_probe(refused[1]):
            return
        if refused:
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

    def _was_probe(self, name: str) -> bool:
        """This tells whether a client was a probe of ours, which it is once."""
        try:
            self._probes.remove(name)
        except ValueError:
            return False
        return True

    def _subscribed(self, name: str, text: str) -> None:
        """This counts a client's filters since it connected; to ask again for one adds none."""
        filters = self._filters.setdefault(name, set())
        filters.add(hash(text) if len(text) < _CUT else len(filters))
        if len(filters) > MAX_SUBSCRIPTIONS:
            filters.clear()
            self._refusals.note(name, f"more than {MAX_SUBSCRIPTIONS} subscriptions")
            self._soon(self._too_many, name)


@dataclass(frozen=True, slots=True)
class FollowedLog:
    """This is the log of one mosquitto, as it is read.

    Args:
        descriptor: where mosquitto writes it; open as long as the block of :meth:`BrokerLog.followed` lasts.
        kept: its last lines.
        ended: is done at its end.
    """

    descriptor: int
    kept: deque[str]
    ended: asyncio.Future[None]

    def end(self) -> None:
        """This is told at its end."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def last_words(self) -> str:
        """This waits for its end, and gives the last of it as one line."""
        await asyncio.wait({self.ended}, timeout=LAST_WORDS_S)
        return "; ".join(self.kept.copy()) or "it said nothing"
