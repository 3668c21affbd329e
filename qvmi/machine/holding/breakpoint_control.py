"""Who waits at which breakpoint of one machine: the first one takes hold of the gdbstub, the last lets go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

from qvmi.addr import Va
from qvmi.errors import MachineGone, PauseError, QmpCommandFailed, QvmiError, UsageError
from qvmi.gdbstub.client import Breakpoint, GdbClient
from qvmi.gdbstub.packets import BreakpointKind, detach_request
from qvmi.machine.completion import ended, to_the_end
from qvmi.machine.holding.breakpoints import Condition, HitStream, hit_of
from qvmi.machine.holding.debugger import Debugger, Stop
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_place import (
    StubPlace,
    connect_stub,
    end_stub,
    find_stub,
    require_free_stub,
)
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.guest_os import Thread
from qvmi.semantics.linux.guest import LinuxGuest

__all__ = ["BreakpointControl"]


class BreakpointControl:
    """This sets and removes breakpoints for any number of consumers.

    Args:
        monitor: the conversation with QEMU.
        run_control: stops the guest and lets it run while no breakpoint is set.
        gdb: the address of the gdbstub that the user named; None to find or start one.
        guest: the system that runs, if it is known; it names the thread of a hit.
    """

    def __init__(
        self,
        monitor: Monitor,
        run_control: RunControl,
        gdb: str | None,
        guest: Callable[[], LinuxGuest | None],
    ) -> None:
        self._monitor = monitor
        self._run_control = run_control
        self._gdb = gdb
        self._guest = guest
        self._lock = asyncio.Lock()
        self._closed = False
        self._debugger: Debugger | None = None
        self._place: StubPlace | None = None
        self._take_back: Callable[[], None] = _nothing
        self._waiting: dict[Breakpoint, list[HitStream]] = {}
        self._stops_before, self._still_before_s = 0, 0.0

    @property
    def cost(self) -> tuple[int, float]:
        """This is how often the guest has stopped for breakpoints, and for how long in all, in seconds.

        Under TCG it is slower besides: QEMU translates its code anew.
        """
        stops, still_s = self._stops_before, self._still_before_s
        if self._debugger is not None:
            stops += self._debugger.stops
            still_s += self._debugger.stood_still_s
        return stops, still_s

    @asynccontextmanager
    async def at(
        self,
        place: str,
        va: Va,
        condition: Condition | None = None,
        *,
        kind: BreakpointKind | None = None,
        size: int = 1,
    ) -> AsyncIterator[HitStream]:
        """This makes a stream of the hits of a breakpoint for as long as the block lasts.

        Args:
            place: what people call it.
            va: where it is.
            condition: tells which hits are wanted.
            kind: what is waited for; a software breakpoint unless told otherwise.
            size: bytes, for a watchpoint.

        Raises:
            PauseError: the guest stands still, by its owner or within a pause.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            UsageError: QEMU starts no gdbstub.
            GdbstubRequestFailed: it refuses the breakpoint.
            MachineGone, GdbstubTimeout: QEMU did not answer.
        """
        stream = HitStream(place, condition)
        breakpoint_ = Breakpoint(va, kind or BreakpointKind.SOFTWARE, size)
        entering = asyncio.ensure_future(self._enter(breakpoint_, stream))
        cancelled = await ended(entering)
        entering.result()
        try:
            if cancelled is not None:
                raise cancelled
            yield stream
        finally:
            stream.end(None)
            await to_the_end(self._leave(breakpoint_, stream))

    async def close(self) -> None:
        """This lets go of the gdbstub though somebody waits for hits; there are no more for him."""
        async with self._lock:
            self._closed = True
            self._end(None)
            if self._debugger is not None:
                async with self._run_control.exclusively():
                    await self._let_go()

    async def _enter(self, breakpoint_: Breakpoint, stream: HitStream) -> None:
        async with self._lock:
            if self._closed:
                raise UsageError(f"breakpoint: {self._monitor.target} was closed")
            if self._debugger is None:
                if self._run_control.pause is not None:
                    raise PauseError("a breakpoint within paused() would wait for ever")
                if self._run_control.debugger is not None:
                    raise PauseError("gdb has the guest: set the breakpoint there, or end it")
                async with self._run_control.exclusively():
                    await self._take_hold()
            streams = self._waiting.setdefault(breakpoint_, [])
            streams.append(stream)
            try:
                if len(streams) == 1 and self._debugger is not None:
                    await self._debugger.standing(
                        partial(GdbClient.insert, breakpoint_=breakpoint_)
                    )
            except QvmiError:
                await self._forget(breakpoint_, stream)
                raise

    async def _leave(self, breakpoint_: Breakpoint, stream: HitStream) -> None:
        async with self._lock:
            with suppress(MachineGone):  # nothing is left of it; who waits for hits has been told
                await self._forget(breakpoint_, stream)

    async def _forget(self, breakpoint_: Breakpoint, stream: HitStream) -> None:
        streams = self._waiting[breakpoint_]
        streams.remove(stream)
        if not streams:
            del self._waiting[breakpoint_]
        if self._debugger is None:
            return
        if not self._waiting:
            async with self._run_control.exclusively():
                await self._let_go()
        elif not streams:
            await self._debugger.standing(partial(GdbClient.remove, breakpoint_=breakpoint_))

    async def _take_hold(self) -> None:
        """This attaches to the gdbstub, under the eyes of the guardian."""
        guardian = await self._run_control.prepare()
        if not (await commands.run_state(self._monitor)).running:
            await require_free_stub(self._monitor, self._gdb)
            raise PauseError("the guest was paused by its owner: a breakpoint would wait for ever")
        place = await find_stub(self._monitor, self._gdb, guardian.note_folder)
        guardian.note_stopped(stopped=True)
        try:
            client = await connect_stub(place, was_running=True)
            detach = detach_request(client.process).decode()
            guardian.hold_stub(client.descriptor, detach, place.folder)
            self._take_back = guardian.leave_stub
        except BaseException:
            await self._make_run(place)
            raise
        self._place = place
        self._debugger = Debugger(client, self._dispatch, self._end)
        self._run_control.debugger = self._debugger

    async def _let_go(self) -> None:
        """This detaches; the guest runs afterwards, and has no breakpoint in it."""
        debugger, place = self._debugger, self._place
        self._stops_before, self._still_before_s = self.cost
        self._debugger = self._place = self._run_control.debugger = None
        if debugger is None or place is None:
            return
        try:
            await debugger.leave(self._take_back)
        finally:
            await self._make_run(place)

    async def _make_run(self, place: StubPlace) -> None:
        """This ends what was begun for a debugger, and makes sure that the guest runs."""
        guardian = await self._run_control.prepare()
        with suppress(QvmiError):
            await end_stub(self._monitor, place)
        guardian.drop_stub()
        status = await commands.run_state(self._monitor)
        if not status.running and status.status in {"paused", "debug"}:
            # Where another client of a gateway holds it, that lets it run.
            with suppress(QmpCommandFailed):
                await commands.cont(self._monitor)
        guardian.note_stopped(stopped=False)

    def _dispatch(self, stop: Stop) -> None:
        """This hands a stop to everyone who waits for it."""
        thread = self._thread(stop)
        for breakpoint_, streams in self._waiting.items():
            if _is_met(breakpoint_, stop):
                for stream in streams:
                    stream.put(hit_of(stream, stop, thread))

    def _thread(self, stop: Stop) -> Thread | None:
        guest = self._guest()
        if guest is None:
            return None
        try:
            return guest.current_thread(stop.registers)
        except QvmiError:
            return None

    def _end(self, error: QvmiError | None) -> None:
        for streams in self._waiting.values():
            for stream in streams:
                stream.end(error)


def _nothing() -> None:
    """This takes nothing back: no guardian was given a connection."""


def _is_met(breakpoint_: Breakpoint, stop: Stop) -> bool:
    if stop.watched is not None:
        return 0 <= stop.watched - breakpoint_.address < breakpoint_.size
    return Va(breakpoint_.address) == stop.pc
