"""The looks at one guest that events are made of, in a thread that uses at most a tenth of a core."""

import asyncio
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from qvmi.errors import QvmiError
from qvmi.machine.completion import ended
from qvmi.machine.events.event_stream import EventAccount, EventStream
from qvmi.semantics.linux.events.event_watch import EventWatch
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.events import EventKind

__all__ = ["EventThread", "Pace"]

_GLANCE_S: Final = 0.001
"""Between two quick looks: a fork is seen within it, and half of those of processes that do nothing."""
_RESCAN_S: Final = 0.05
"""Between two looks at everything."""
_SHARE: Final = 0.09
"""Of a core, for looking. What takes longer, as a guest with many processes or one that lies, is looked at
less often."""
_BURST_S: Final = 0.02
"""CPU time that may be used at once behind a quiet time."""
_NAP_S: Final = 0.05
"""How long the thread sleeps at most before it asks whether it is to end."""


class Pace:
    """This tells how long to wait between two looks so that they cost no more than their share.

    Args:
        now: a clock, in seconds.
        cpu: CPU time used up to now, in seconds.
    """

    def __init__(self, now: float, cpu: float) -> None:
        self._now = now
        self._cpu = cpu
        self._credit = _BURST_S

    def pause_s(self, now: float, cpu: float) -> float:
        """This is how long to wait from now on, in seconds."""
        earned = (now - self._now) * _SHARE
        self._credit = min(_BURST_S, self._credit + earned) - (cpu - self._cpu)
        self._now, self._cpu = now, cpu
        return max(_GLANCE_S, -self._credit / _SHARE)


class EventThread:
    """This looks at a guest until it is told to end, or cannot go on.

    Args:
        guest: what is looked at.
        kinds: which events are wanted.
        stream: where they go; its account goes on from what it was.
        begun: is set once what happens is seen.
    """

    def __init__(
        self,
        guest: LinuxGuest,
        kinds: Collection[EventKind],
        stream: EventStream,
        begun: asyncio.Event,
    ) -> None:
        self._guest = guest
        self._kinds = kinds
        self._stream = stream
        self._before = stream.account
        self._looks = self._rescans = 0
        self._began = time.monotonic()
        self._ending = False
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[BaseException | None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="qvmi events", daemon=True)
        self._begun = begun

    async def run(self) -> QvmiError | None:
        """This looks until the end, and is what has ended it; None for a plain end.

        When this returns or raises, the thread has ended.
        """
        self._thread.start()
        try:
            outcome = await asyncio.shield(self._ended)
        finally:
            self._ending = True
            await ended(self._ended)
            self._thread.join()
        if outcome is not None and not isinstance(outcome, QvmiError):
            raise outcome  # of qvmi's own: whoever watches is to hear of it
        return outcome

    def end(self) -> None:
        """This lets the looks end behind a last one."""
        self._ending = True

    def _run(self) -> None:
        outcome: BaseException | None = None
        try:
            self._look()
        except BaseException as error:  # noqa: BLE001 - it is raised where the events are wanted
            outcome = error
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: BaseException | None) -> None:
        if not self._ended.done():
            self._ended.set_result(outcome)

    def _look(self) -> None:
        """This looks, quick look after quick look.

        Raises:
            QvmiError: it cannot go on.
        """
        # Walkers of its own: those of the guest are used on the event loop meanwhile.
        watch = LinuxGuest(self._guest.view, self._guest.kernel).events(self._kinds)
        self._stream.put(watch.begin(), self._account(watch))
        self._loop.call_soon_threadsafe(self._begun.set)
        glance, put, cpu_time, clock = (
            watch.glance,
            self._stream.put,
            time.thread_time,
            time.monotonic,
        )
        pace = Pace(clock(), cpu_time())
        due = clock() + _RESCAN_S
        while not self._ending:
            self._nap(pace.pause_s(clock(), cpu_time()))
            self._looks += 1
            events = glance()
            if events:
                put(events)
            if clock() >= due:
                self._rescan(watch)
                due = clock() + _RESCAN_S
        events = watch.glance()
        put(events)
        self._rescan(watch)

    def _rescan(self, watch: EventWatch) -> None:
        self._rescans += 1
        self._stream.put(watch.rescan(), self._account(watch))

    def _nap(self, seconds: float) -> None:
        while seconds > _NAP_S and not self._ending:
            time.sleep(_NAP_S)
            seconds -= _NAP_S
        time.sleep(min(seconds, _NAP_S))

    def _account(self, watch: EventWatch) -> EventAccount:
        before, forks = self._before, watch.forks
        counted = None if forks is None else (before.forks or 0) + forks.forks
        return EventAccount(
            looks=before.looks + self._looks,
            rescans=before.rescans + self._rescans,
            watched_s=before.watched_s + time.monotonic() - self._began,
            cpu_s=before.cpu_s + time.thread_time(),
            forks=counted,
            found=before.found + (0 if forks is None else forks.found),
            missed=before.missed + (0 if forks is None else forks.account()),
        )
