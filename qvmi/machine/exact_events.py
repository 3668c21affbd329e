"""Events of processes by breakpoints: none is missed, and the guest stands still for each.

References: Linux kernel/fork.c (``wake_up_new_task``: the new task is its argument, linked and counted),
fs/exec.c (``setup_new_exec``: behind the point of no return, with the new name), kernel/exit.c
(``do_exit``: the last thread of a process calls ``disassociate_ctty`` with 1).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Final, Protocol

from qvmi.addr import Va
from qvmi.errors import MemoryFault, QvmiError, UsageError
from qvmi.machine.control import Control
from qvmi.machine.events.event_stream import EventAccount, EventStream
from qvmi.machine.holding.breakpoints import Condition, Hit, HitStream
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.linux.structures.list import Implausible
from qvmi.semantics.rows.events import (
    PROCESS_KINDS,
    EventKind,
    GuestEvent,
    NotSeen,
    ProcessExeced,
    ProcessExited,
    ProcessStarted,
)
from qvmi.view import Provenance, Taken

__all__ = ["ExactEvents"]

_CHECK_S: Final = 0.1
"""Between two questions whether it is still the same guest."""
_PLACES: Final = {
    EventKind.STARTED: "wake_up_new_task",
    EventKind.EXECED: "setup_new_exec",
    EventKind.EXITED: "disassociate_ctty",
}


class Breakpoints(Protocol):
    """This sets a breakpoint for as long as a block lasts."""

    def __call__(
        self, place: str, *, condition: Condition
    ) -> AbstractAsyncContextManager[HitStream]:
        """This sets it at a symbol."""
        ...


class ExactEvents:
    """This tells of the processes of one guest.

    Args:
        guest: the guest.
        control: tells what the breakpoints cost.
        wanted: which kinds are.

    Raises:
        UsageError: one that there is no breakpoint for.
    """

    def __init__(self, guest: LinuxGuest, control: Control, wanted: frozenset[EventKind]) -> None:
        if not wanted <= PROCESS_KINDS:
            others = ", ".join(sorted(wanted - PROCESS_KINDS))
            known = ", ".join(sorted(PROCESS_KINDS))
            raise UsageError(f"no breakpoint is for {others}: exact are {known}")
        self._wanted = wanted
        self._guest = guest
        self._moments = guest.task_moments
        self._control = control
        self._stream = EventStream()
        self._began = time.monotonic()
        self._makers: dict[EventKind, Callable[[Hit, Provenance], GuestEvent | None]] = {
            EventKind.STARTED: self._started,
            EventKind.EXECED: self._execed,
            EventKind.EXITED: self._exited,
        }

    @asynccontextmanager
    async def watched(self, breakpoints: Breakpoints) -> AsyncIterator[EventStream]:
        """This sets the breakpoints for as long as the block lasts.

        Raises:
            QvmiError: they cannot be set.
        """
        before = self._control.breakpoints.cost
        following: list[asyncio.Task[None]] = []
        async with AsyncExitStack() as stack:
            for kind in sorted(self._wanted):
                hits = await stack.enter_async_context(
                    breakpoints(_PLACES[kind], condition=self._condition(kind, before))
                )
                following.append(asyncio.create_task(self._follow(hits), name="qvmi exact events"))
            following.append(asyncio.create_task(self._follow_guest(), name="qvmi exact events"))
            try:
                yield self._stream
            finally:
                for task in following:
                    task.cancel()
                await asyncio.wait(following)
        self._stream.put((), self._account(before))
        self._stream.end(None)

    def _condition(self, kind: EventKind, before: tuple[int, float]) -> Condition:
        """This makes an event of each hit while the guest stands still; none waits as a hit."""
        make = self._makers[kind]

        def look(hit: Hit) -> bool:
            label = Provenance(Taken.CAPTURED, hit.at, epoch=self._guest.view.provenance.epoch)
            try:
                event = make(hit, label)
            except (QvmiError, Implausible) as error:
                event = NotSeen(hit.at, label, _PLACES[kind], hit.address, str(error))
            self._stream.put([] if event is None else [event], self._account(before))
            return False

        return look

    def _started(self, hit: Hit, label: Provenance) -> GuestEvent | None:
        task = Va(hit.arguments[0])
        if self._moments.leader(task) != task:
            return None  # a thread
        return ProcessStarted(hit.at, label, self._moments.row(task))

    def _execed(self, hit: Hit, label: Provenance) -> GuestEvent:
        row = self._moments.row(self._task_of(hit))
        return ProcessExeced(hit.at, label, row, None, 1)

    def _exited(self, hit: Hit, label: Provenance) -> GuestEvent | None:
        if hit.arguments[0] & 1 == 0:
            return None  # a terminal was given up, by a process that lives on
        task = self._task_of(hit)
        row = self._moments.row(self._moments.leader(task))
        return ProcessExited(hit.at, label, row, self._moments.read(task).exit_code)

    def _task_of(self, hit: Hit) -> Va:
        """This is the task that the vCPU runs.

        Raises:
            MemoryFault: it cannot be told.
        """
        if hit.task is None:
            raise MemoryFault(hit.address, 8, kind="virtual", why="which task runs is not known")
        return hit.task.address

    def _account(self, before: tuple[int, float]) -> EventAccount:
        stops, still_s = self._control.breakpoints.cost
        return EventAccount(
            watched_s=time.monotonic() - self._began,
            stops=stops - before[0],
            stood_still_s=still_s - before[1],
        )

    async def _follow(self, hits: HitStream) -> None:
        """This waits for what ends a stream of hits, which ends this one."""
        try:
            async for _ in hits:
                pass
        except QvmiError as error:
            self._stream.end(error)

    async def _follow_guest(self) -> None:
        """This ends the stream where another guest runs: its breakpoints would be elsewhere."""
        with suppress(asyncio.CancelledError):
            while True:
                try:
                    self._guest.require_current()
                except QvmiError as error:
                    self._stream.end(error)
                    return
                await asyncio.sleep(_CHECK_S)
