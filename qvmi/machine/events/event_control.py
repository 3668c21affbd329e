"""Who watches one machine for events, whatever guest runs in it: it goes on behind a reset."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

from qvmi.errors import GuestError, MachineGone, MemoryFault, QvmiError, StaleView, SymbolsError
from qvmi.machine.completion import to_the_end
from qvmi.machine.events.event_stream import EventStream
from qvmi.machine.events.event_thread import EventThread
from qvmi.machine.worker import in_worker
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.events import EventKind, GuestChanged
from qvmi.view import Provenance, Taken

__all__ = ["EventControl"]

_AGAIN_S: Final = 0.5
"""Between two looks which system runs: one that boots takes seconds."""
_NOT_YET: Final = (GuestError, MemoryFault, StaleView, SymbolsError)
"""What a look at a system that boots may end with."""


class EventControl:
    """This watches one machine for one consumer.

    Args:
        guest: the system that runs; raises why none is known.
        refresh: looks again which system runs.
        epoch: counts resets.
        kinds: which events are wanted.
    """

    def __init__(
        self,
        guest: Callable[[], LinuxGuest],
        refresh: Callable[[], Awaitable[object]],
        epoch: Callable[[], int],
        kinds: Collection[EventKind],
    ) -> None:
        self._guest = guest
        self._refresh = refresh
        self._epoch = epoch
        self._kinds = kinds
        self.stream = EventStream()
        self._begun = asyncio.Event()
        self._thread: EventThread | None = None
        self._running: asyncio.Task[None] | None = None
        self._closing = False

    async def begin(self) -> None:
        """This begins to watch; what happens from when this returns is seen.

        Raises:
            QvmiError: the guest cannot be watched.
        """
        self._running = asyncio.create_task(self._run(), name="qvmi events")
        beginning = asyncio.create_task(self._begun.wait(), name="qvmi events begin")
        try:
            await asyncio.wait({self._running, beginning}, return_when=asyncio.FIRST_COMPLETED)
            if self._running.done():
                self._running.result()
        finally:
            beginning.cancel()

    async def close(self) -> None:
        """This ends the watching, whoever is cancelled meanwhile; the thread has ended then.

        What a last look sees is in the stream.
        """
        await to_the_end(self._close())

    async def _close(self) -> None:
        running, self._running = self._running, None
        if running is None:
            return
        self._closing = True
        if self._thread is not None:
            self._thread.end()
        else:
            running.cancel()
        await asyncio.wait({running})
        if not running.cancelled():
            running.result()

    async def _run(self) -> None:
        """This watches one guest after the other.

        Raises:
            QvmiError: not even the first one can be watched; what comes later ends the stream.
        """
        outcome: QvmiError | None = None
        try:
            guest = self._guest()
            while True:
                self._thread = EventThread(guest, self._kinds, self.stream, self._begun)
                outcome = await self._thread.run()
                self._thread = None
                if not isinstance(outcome, StaleView):
                    break
                if self._closing:
                    outcome = None
                    break
                guest = await self._next_guest()
        except QvmiError as error:
            outcome = error
        finally:
            self._thread = None
            self.stream.end(outcome)
        if outcome is not None and not self._begun.is_set():
            raise outcome

    async def _next_guest(self) -> LinuxGuest:
        """This waits for the next system that can be looked at, and tells of the change.

        Raises:
            MachineGone: there will be none.
        """
        after = time.time()
        self._tell(after, "")
        while True:
            await self._refresh()
            try:
                guest = self._guest()
                await in_worker(partial(_begins, guest, self._kinds))
            except MachineGone:
                raise
            except _NOT_YET:
                await asyncio.sleep(_AGAIN_S)
            else:
                self._tell(after, guest.kernel.release)
                return guest

    def _tell(self, after: float, release: str) -> None:
        label = Provenance(Taken.LIVE, time.time(), epoch=self._epoch())
        self.stream.put([GuestChanged(after, label, release)])


def _begins(guest: LinuxGuest, kinds: Collection[EventKind]) -> None:
    """This looks once whether all that is watched is there already; raises what is missing."""
    LinuxGuest(guest.view, guest.kernel).events(kinds).begin()
