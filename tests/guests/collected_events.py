"""A guest whose events a test collects, and waits for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import qvmi
from qvmi.machine.events.event_stream import EventStream
from qvmi.semantics.rows.events import GuestEvent
from tests.guests.lab import Guest

__all__ = ["Watching", "forks_counted", "watching"]

SEEN_S: Final = 60.0
"""An event is seen within milliseconds; a loaded machine may let the watcher wait for many seconds."""

Event = TypeVar("Event", bound=GuestEvent)


class Watching:
    """This has all events of a stream up to now.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: EventStream) -> None:
        self.stream = stream
        self.events: list[GuestEvent] = []
        self._news = asyncio.Condition()

    async def follow(self) -> None:
        async for event in self.stream:
            async with self._news:
                self.events.append(event)
                self._news.notify_all()

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def first(
        self, kind: type[Event], wanted: Callable[[Event], bool] = lambda _: True
    ) -> Event:
        """This is the first event of a kind that is wanted, once it is there."""

        def found() -> Event | None:
            return next((event for event in self.of(kind) if wanted(event)), None)

        async with asyncio.timeout(SEEN_S), self._news:
            await self._news.wait_for(lambda: found() is not None)
        event = found()
        assert event is not None
        return event


@asynccontextmanager
async def watching(
    machine: qvmi.Machine, kinds: Collection[str] | None = None, *, exact: bool = False
) -> AsyncIterator[Watching]:
    """This watches for as long as the block lasts; behind it, nothing is missing in what was collected."""
    watch = machine.exact_events if exact else machine.events
    async with watch(kinds) as stream:
        collected = Watching(stream)
        following = asyncio.create_task(collected.follow())
        yield collected
    async with asyncio.timeout(SEEN_S):
        await following


def forks_counted(guest: Guest) -> int:
    """This is how many tasks the guest says it has ever made, those that tell it among them."""
    (line,) = (one for one in guest.run("cat /proc/stat").splitlines() if b"processes" in one)
    return int(line.split()[1])
