"""The events of QMP as typed values, and a stream of them that cannot grow without bound.

References: QEMU ``docs/interop/qmp-spec.rst`` (section 2.5, asynchronous events),
``qapi/run-state.json``, ``qapi/migration.json``.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec

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

    Memory is bounded: behind a slow consumer the oldest ordinary events are dropped, and, in a
    queue of their own, the oldest run-state events. Every drop is told: the next item is then an
    `EventsLost`.
    """

    def __init__(self) -> None:
        self._ordinary = deque[tuple[int, Event]](maxlen=_MAX_ORDINARY)
        self._run_state = deque[tuple[int, Event]](maxlen=_MAX_RUN_STATE)
        self._lost = {"ordinary": 0, "run_state": 0}
        self._number = 0
        self._news = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """This appends an event; never waits."""
        grave = event.name in RUN_STATE_EVENTS
        queue = self._run_state if grave else self._ordinary
        if len(queue) == queue.maxlen:
            self._lost["run_state" if grave else "ordinary"] += 1
        self._number += 1
        queue.append((self._number, event))
        self._news.set()

    def end(self) -> None:
        """This makes `next` return None once what is queued has been taken."""
        self._ended = True
        self._news.set()

    async def next(self) -> Event | None:
        """This waits for the next event; None after the end."""
        while (event := self._take()) is None and not self._ended:
            self._news.clear()
            await self._news.wait()
        return event

    def _take(self) -> Event | None:
        queues = [queue for queue in (self._run_state, self._ordinary) if queue]
        if not queues:
            return None
        if any(self._lost.values()):
            lost = EventsLost(name="", at=queues[0][0][1].at, **self._lost)
            self._lost = dict.fromkeys(self._lost, 0)
            return lost
        return min(queues, key=lambda queue: queue[0][0]).popleft()[1]
