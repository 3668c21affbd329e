"""The events of QMP as typed values, and a stream of them that cannot grow without bound.

References: QEMU ``docs/interop/qmp-spec.rst`` (section 2.5, asynchronous events),
``qapi/run-state.json``, ``qapi/migration.json``.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

import msgspec

from qvmi.errors import QvmiError

__all__ = [
    "RUN_STATE_EVENTS",
    "Event",
    "EventStream",
    "EventsLost",
    "GuestPanicked",
    "Migration",
    "OtherEvent",
    "Powerdown",
    "Reset",
    "Resume",
    "Shutdown",
    "Stop",
    "Suspend",
    "Wakeup",
    "decode_event",
]

# A consumer that is 256 ordinary events behind has stopped listening; a guest can cause some kinds
# (RTC_CHANGE, VSERPORT_CHANGE) as fast as it likes, QEMU limits only a few of them.
_MAX_ORDINARY: Final = 256
_MAX_RUN_STATE: Final = 1024


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """This is one thing that happened to the virtual machine.

    Args:
        name: QMP's name of it.
        at: when, in seconds since the Unix epoch on QEMU's clock; 0.0 where QEMU could not tell.
    """

    name: str
    at: float


class Reset(Event, frozen=True, kw_only=True):
    """This says that the machine was reset: whatever was known about the guest is void.

    Args:
        guest: the guest asked for it.
        reason: QEMU's word, such as ``guest-reset`` or ``host-qmp-system-reset``.
    """

    guest: bool = False
    reason: str = ""


class Shutdown(Event, frozen=True, kw_only=True):
    """This says that the machine has shut down; QEMU ends next, unless ``-no-shutdown``."""

    guest: bool = False
    reason: str = ""


class Powerdown(Event, frozen=True, kw_only=True):
    """This says that the guest was asked to power off (the ACPI button)."""


class Stop(Event, frozen=True, kw_only=True):
    """This says that the vCPUs stand still."""


class Resume(Event, frozen=True, kw_only=True):
    """This says that the vCPUs run again."""


class Suspend(Event, frozen=True, kw_only=True):
    """This says that the guest has suspended to RAM."""


class Wakeup(Event, frozen=True, kw_only=True):
    """This says that the guest has woken from suspend."""


class GuestPanicked(Event, frozen=True, kw_only=True):
    """This says that the guest's kernel told QEMU, through pvpanic or the like, that it crashed."""

    action: str = ""


class Migration(Event, frozen=True, kw_only=True):
    """This says that a migration came to a new status; ``completed`` means the guest runs elsewhere."""

    status: str = ""


class OtherEvent(Event, frozen=True, kw_only=True):
    """This is an event without a type of its own."""

    data: Mapping[str, object]


class EventsLost(Event, frozen=True, kw_only=True):
    """This stands in a stream where events are missing that came faster than they were taken.

    Args:
        ordinary: how many events were dropped that do not change the run state.
        run_state: how many were dropped that do; what is known about the guest is void.
    """

    ordinary: int
    run_state: int


RUN_STATE_EVENTS: Final[Mapping[str, type[Event]]] = {
    "GUEST_PANICKED": GuestPanicked,
    "MIGRATION": Migration,
    "POWERDOWN": Powerdown,
    "RESET": Reset,
    "RESUME": Resume,
    "SHUTDOWN": Shutdown,
    "STOP": Stop,
    "SUSPEND": Suspend,
    "WAKEUP": Wakeup,
}
"""The events after which the guest runs otherwise than before, or another guest runs."""


def decode_event(name: str, data: Mapping[str, object], at: float) -> Event:
    """This is the typed value of an event; never fails, since a lost RESET would be worse."""
    kind = RUN_STATE_EVENTS.get(name)
    if kind is None:
        return OtherEvent(name=name, at=at, data=data)
    try:
        return msgspec.convert({**data, "name": name, "at": at}, kind)
    except msgspec.ValidationError:
        return kind(name=name, at=at)


class EventStream:
    """This is the sequence of events since it was opened, for one consumer.

    ::

        with session.events() as events:
            async for event in events: ...

    Memory is bounded: behind a slow consumer the oldest ordinary events are dropped, and, from a
    queue of their own, the oldest run-state events. No drop is silent: the next item is then an
    `EventsLost`.

    Args:
        on_close: called once when the consumer leaves.
    """

    def __init__(self, on_close: "Callable[[EventStream], None]") -> None:
        self._on_close = on_close
        self._ordinary = deque[tuple[int, Event]](maxlen=_MAX_ORDINARY)
        self._run_state = deque[tuple[int, Event]](maxlen=_MAX_RUN_STATE)
        self._lost = {"ordinary": 0, "run_state": 0}
        self._number = 0
        self._news = asyncio.Event()
        self._ended: StopAsyncIteration | QvmiError | None = None

    def put(self, event: Event) -> None:
        """This appends an event; it never waits."""
        grave = event.name in RUN_STATE_EVENTS
        queue = self._run_state if grave else self._ordinary
        if len(queue) == queue.maxlen:
            self._lost["run_state" if grave else "ordinary"] += 1
        self._number += 1
        queue.append((self._number, event))
        self._news.set()

    def end(self, error: QvmiError | None) -> None:
        """This ends the stream behind what is queued: by an error, or None for a plain end."""
        self._ended = error or StopAsyncIteration()
        self._news.set()

    def close(self) -> None:
        """This stops collecting events."""
        if self._ended is None:
            self._on_close(self)
            self.end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    def so_far(self) -> Iterator[Event]:
        """These are the events that have come by now, taken off the stream; none is waited for."""
        while (event := self._take()) is not None:
            yield event

    async def __anext__(self) -> Event:
        while (event := self._take()) is None:
            if self._ended is not None:
                raise self._ended
            self._news.clear()
            await self._news.wait()
        return event

    def _take(self) -> Event | None:
        queues = [queue for queue in (self._run_state, self._ordinary) if queue]
        if not queues:
            return None
        first = min(queues, key=lambda queue: queue[0][0])
        if any(self._lost.values()):
            lost = EventsLost(name="", at=first[0][1].at, **self._lost)
            self._lost = dict.fromkeys(self._lost, 0)
            return lost
        return first.popleft()[1]
