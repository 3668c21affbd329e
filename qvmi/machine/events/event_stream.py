"""What happens in a guest as a stream: filled from any thread, bounded, with what was dropped counted."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Protocol, Self, runtime_checkable

import msgspec

from qvmi.errors import QvmiError
from qvmi.semantics.rows.events import GuestEvent, Missed, What

__all__ = ["MAX_WAITING_EVENTS", "EventAccount", "EventSource", "EventStream"]

MAX_WAITING_EVENTS: Final = 16_384
"""Events kept for a consumer that is slow; the oldest are dropped and counted. It is some seconds of the
fastest fork storm, and some MiB."""


class EventAccount(msgspec.Struct, frozen=True, tag_field="kind", tag="account"):
    """This says how well a guest was watched, from the beginning up to now.

    Args:
        looks: quick looks; `rescans` of them were followed by a look at everything.
        watched_s: for how long, in seconds.
        cpu_s: what the thread that looks has used of a CPU, in seconds.
        forks: how many the kernel has counted; None where processes are not watched, or by breakpoints.
        found: how many of them were found: processes and threads. One that was missed is in neither's events.
        missed: how many were not found.
        dropped: events that nobody took in time.
        stops: how often the guest was stopped for events that are exact; else 0.
        stood_still_s: for how long in all. Under TCG it is slower besides: its code is translated anew.
    """

    looks: int = 0
    rescans: int = 0
    watched_s: float = 0.0
    cpu_s: float = 0.0
    forks: int | None = None
    found: int = 0
    missed: int = 0
    dropped: int = 0
    stops: int = 0
    stood_still_s: float = 0.0


class EventStream(AsyncIterator[GuestEvent]):
    """This iterates events as they are seen; it ends with the block that made it, or raises what ended it.

    Whoever makes it does so on the event loop on which it is read.

    Attributes:
        dropped: how many events nobody took in time; the stream itself tells of them, too.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._told_dropped = 0
        self._account = EventAccount()
        self._waiting: deque[GuestEvent] = deque()
        self._lock = threading.Lock()
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._end: Exception | None = None

    @property
    def account(self) -> EventAccount:
        """This says how well the guest was watched up to now."""
        return msgspec.structs.replace(self._account, dropped=self.dropped)

    @property
    def waiting(self) -> int:
        """This is how many events wait for the consumer."""
        return len(self._waiting)

    def put(self, events: Iterable[GuestEvent], account: EventAccount | None = None) -> None:
        """This takes events in, and how well the guest was watched; from any thread, and it never waits."""
        with self._lock:
            self._waiting.extend(events)
            while len(self._waiting) > MAX_WAITING_EVENTS:
                self._waiting.popleft()
                self.dropped += 1
            if account is not None:
                self._account = account
            has_news = bool(self._waiting)
        if has_news and not self._news.is_set():
            with suppress(RuntimeError):  # the loop was closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._news.set)

    def end(self, error: QvmiError | None) -> None:
        """This ends the stream behind what waits in it: by an error, or None for a plain end."""
        self._end = self._end or error or StopAsyncIteration()
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GuestEvent:
        while (event := self._next()) is None:
            if self._end is not None:
                raise self._end
            await self._news.wait()
        return event

    def _next(self) -> GuestEvent | None:
        """This is the next event; None where there is none yet."""
        with self._lock:
            if not self._waiting:
                self._news.clear()
                if self._end is not None:
                    self._news.set()
                return None
            count = self.dropped - self._told_dropped
            if count:
                self._told_dropped = self.dropped
                oldest = self._waiting[0]
                return Missed(oldest.after, oldest.provenance, What.EVENTS, count)
            return self._waiting.popleft()


@runtime_checkable
class EventSource(Protocol):
    """This is whatever tells what happens in a guest: a machine, or what stands for one in a test.

    Whoever is to be woken by events, such as a codepack, needs no more than this.
    """

    def events(
        self, kinds: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[GuestEvent]]:
        """This watches for as long as a block lasts, and iterates what happens.

        Args:
            kinds: which kinds are wanted, by their names in `EventKind`; None for all.
        """
        ...
