"""One gdbstub for many debuggers: who has it, whose breakpoint was hit, and what runs next.

References: QEMU ``gdbstub.c`` (whoever connects stops the guest; ``gdb_vm_state_change``); GDB manual,
"Stop Reply Packets". The stub is connected to when the first debugger asks for something that only it
can answer, and left when the last one has gone. ADR 0031 says who decides when the guest runs.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Final, Protocol

from qvmi.errors import (
    GdbstubBusy,
    GdbstubRequestFailed,
    GdbstubTimeout,
    GuestRunning,
    MachineGone,
    QvmiError,
)
from qvmi.gdbstub.channel import Channel
from qvmi.gdbstub.client import Breakpoint
from qvmi.gdbstub.connection import CONNECT_TIMEOUT_S, Attached, attach
from qvmi.gdbstub.packets import (
    PHYSICAL,
    VIRTUAL,
    WHY_STOPPED,
    BreakpointKind,
    Exited,
    Resume,
    StopReason,
    StopReply,
    ThreadId,
    breakpoint_request,
    check_ok,
    detach_request,
    hex_data,
    read_register,
    resume_request,
    select_thread,
)
from qvmi.gdbstub.registers import StubRegisters
from qvmi.machine.completion import to_the_end
from qvmi.machine.holding.stub_place import StubPlace, end_stub, find_stub
from qvmi.manager.gateways.standstill import Standstill
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor

__all__ = ["Debugger", "Mode", "SharedStub"]

MAX_BREAKPOINTS: Final = 256
"""Breakpoints of all debuggers together; TCG looks each up, and hardware has four."""

_STOP_S: Final = 5.0
"""How long the guest may take to stand still; it needs milliseconds."""
_FREED_S: Final = 1.0
"""How long the stub may seem to be held that was left a moment ago."""
_RETRY_S: Final = 0.01
_ACKNOWLEDGED: Final = b"+"
_TRAP: Final = 5
_PC: Final = {"x86_64": (16, 8), "aarch64": (32, 8), "i386": (8, 4), "arm": (15, 4)}
"""The number and the size of the program counter, in the order of QEMU's ``gdb-xml``."""
_AT_PC: Final = frozenset({BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE})
_WATCHED: Final = frozenset({
    StopReason.WRITE_WATCHPOINT,
    StopReason.READ_WATCHPOINT,
    StopReason.ACCESS_WATCHPOINT,
})  # fmt: skip

_log: Final = logging.getLogger(__name__)


class Mode(StrEnum):
    """This is what a debugger believes of the guest."""

    AWAY = "away"
    """It has asked nothing yet, or has let go."""
    HOLDS = "holds"
    """The guest stands still for it."""
    RUNS = "runs"
    """It waits for the guest to stop."""
    STEPS = "steps"
    """It waits for one instruction."""


class Debugger(Protocol):
    """This is a client of the stub's.

    Attributes:
        mode: what it believes.
        step: the vCPU that it lets do one instruction, and whether others run meanwhile.
    """

    mode: Mode
    step: tuple[ThreadId, bool]

    def stopped(self, stop: StopReply | Exited) -> None:
        """This is told that the guest stands still, for it."""
        ...


class SharedStub:
    """This shares one machine's gdbstub.

    Args:
        monitor: the conversation with its QEMU.
        standstill: who keeps the guest from running.
        gdb: the address of the gdbstub that was named; None to find or start one.
    """

    def __init__(self, monitor: Monitor, standstill: Standstill, gdb: str | None) -> None:
        self.threads: tuple[ThreadId, ...] = ()
        self._monitor = monitor
        self._standstill = standstill
        self._gdb = gdb
        self._lock = asyncio.Lock()
        self._debuggers: dict[Debugger, None] = {}
        self._breakpoints: dict[Breakpoint, dict[Debugger, None]] = {}
        self._channel: Channel | None = None
        self._place: StubPlace | None = None
        self._current = ThreadId(1)
        self._pc: tuple[int, int] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._still = asyncio.Event()
        self._asked_to_stop = False
        self._stepping: Debugger | None = None

    @property
    def current(self) -> ThreadId:
        """This is the first vCPU."""
        return self._current

    def has(self, thread: ThreadId) -> bool:
        """This tells whether there is such a vCPU, in the process that is named, if one is."""
        return any(
            thread.thread == one.thread and thread.process in {None, one.process}
            for one in self.threads
        )

    # --------------------------------------------------------------------------- coming and going

    async def enter(self, debugger: Debugger) -> None:
        """This gives a debugger the stub; the guest stands still for it by now.

        Raises:
            QvmiError: there is none, or somebody else has it.
        """
        async with self._lock:
            if self._channel is not None and self._channel.ended:
                await to_the_end(self._detach())  # the guardian has let go of it, or QEMU has
            if self._channel is None:
                await to_the_end(self._attach())
            self._debuggers[debugger] = None

    async def leave(self, debugger: Debugger) -> None:
        """This takes a debugger's breakpoints away; the guest stands still meanwhile.

        Where it was the last one, the stub is left, too.
        """
        async with self._lock:
            if debugger not in self._debuggers:
                return
            if self._stepping is debugger:
                self._stepping = None
            for breakpoint_ in [b for b, owners in self._breakpoints.items() if debugger in owners]:
                with suppress(QvmiError):  # the stub may be gone
                    await self._remove(debugger, breakpoint_)
            del self._debuggers[debugger]
            if not self._debuggers:
                await self._detach()

    async def close(self) -> None:
        """This leaves the stub, whoever has it."""
        async with self._lock:
            self._debuggers.clear()
            self._standstill.join(object())  # nobody lets the guest run until all is closed
            await self._detach()

    async def _attach(self) -> None:
        guardian = await self._standstill.guardian()
        self._place = await find_stub(self._monitor, self._gdb, guardian.note_folder)
        try:
            attached = await self._attached(self._place)
        except QvmiError:
            with suppress(QvmiError):
                await end_stub(self._monitor, self._place)
            guardian.drop_stub()
            raise
        channel = attached.channel
        detach = detach_request(attached.current.process).decode()
        guardian.hold_stub(channel.connection().fileno(), detach, self._place.folder)
        self._channel, self._current = channel, attached.current
        self._breakpoints.clear()
        self._still.set()
        try:
            registers = StubRegisters(channel)
            await registers.description()  # QEMU knows `p` once this was read
            self.threads = await registers.threads()
            self._pc = _PC.get(await commands.architecture(self._monitor))
        except QvmiError:
            await self._detach()
            raise
        self._standstill.runner = self
        self._watching = asyncio.create_task(self._watch(channel), name="qvmi gateway stub")

    async def _attached(self, place: StubPlace) -> Attached:
        loop = asyncio.get_running_loop()
        until = loop.time() + _FREED_S
        while True:
            try:
                return await attach(place.address, timeout_s=CONNECT_TIMEOUT_S)
            except GdbstubBusy:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def _detach(self) -> None:
        """This leaves the stub without any breakpoint, and the guest standing still."""
        channel, self._channel = self._channel, None
        place, self._place = self._place, None
        if channel is None or place is None:
            return
        try:
            if not channel.ended:
                with suppress(QvmiError):
                    if channel.running:
                        await self._stop(channel)
                    await channel.ask("leave", [VIRTUAL, WHY_STOPPED])
        finally:
            self._standstill.runner = None
            self._breakpoints.clear()
            await self._end_watching()
            await channel.close()
            with suppress(QvmiError):
                await end_stub(self._monitor, place)
            (await self._standstill.guardian()).drop_stub()

    async def _end_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None and watching is not asyncio.current_task():
            watching.cancel()
            await asyncio.wait({watching})

    # ---------------------------------------------------------------------------------- asking

    async def ask(
        self, doing: str, thread: ThreadId, request: bytes, *, physical: bool = False
    ) -> bytes:
        """This sends a request about a vCPU, and is its answer; the guest stands still.

        Args:
            doing: what for, in errors.
            thread: the vCPU.
            request: the packet's body.
            physical: its addresses are the guest's physical ones; those of nobody else's request are.

        Raises:
            GuestRunning: the guest's owner has let it run, and it stands still again now.
            MachineGone, GdbstubTimeout, GdbstubProtocolError: the stub does not answer.
        """
        before = [VIRTUAL, select_thread(thread), *([PHYSICAL] if physical else [])]
        after = [VIRTUAL] if physical else []
        try:
            replies = await self._usable(doing).ask(doing, [*before, request, *after])
        except GuestRunning:
            await self._standstill.given_back()
            raise
        answer = replies.pop(len(before))
        for sent, reply in zip((*before, *after), replies, strict=True):
            check_ok(sent, reply)
        return answer

    async def change(self, debugger: Debugger, breakpoint_: Breakpoint, *, insert: bool) -> None:
        """This inserts or removes a breakpoint of one debugger's, which others may have as well.

        Raises:
            GdbstubRequestFailed: the stub refused, or there are too many.
        """
        async with self._lock:
            if not insert:
                await self._remove(debugger, breakpoint_)
                return
            owners = self._breakpoints.get(breakpoint_, {})
            if not owners:
                if len(self._breakpoints) >= MAX_BREAKPOINTS:
                    raise GdbstubRequestFailed("Z", "E28")  # ENOSPC
                await self._set(breakpoint_, insert=True)
            self._breakpoints[breakpoint_] = {**owners, debugger: None}

    async def _remove(self, debugger: Debugger, breakpoint_: Breakpoint) -> None:
        owners = self._breakpoints.get(breakpoint_, {})
        if debugger not in owners:
            return
        del owners[debugger]
        if not owners:
            del self._breakpoints[breakpoint_]
            await self._set(breakpoint_, insert=False)

    async def _set(self, one: Breakpoint, *, insert: bool) -> None:
        request = breakpoint_request(one.kind, one.address, one.size, insert=insert)
        check_ok(request, await self.ask("breakpoint", self._current, request))

    def _usable(self, doing: str) -> Channel:
        if self._channel is None:
            raise MachineGone(doing)
        return self._channel

    # ------------------------------------------------------------------------ running, stopping

    @property
    def running(self) -> bool:
        """This tells whether the guest was let run here, and has not stopped since."""
        return self._channel is not None and self._channel.running

    async def stop(self) -> None:
        """This stops the guest, which runs."""
        if self._channel is not None and not self._channel.ended:
            self._still.clear()
            await self._stop(self._channel)

    async def _stop(self, channel: Channel) -> None:
        self._asked_to_stop = True
        # A stub whose last answer nobody has acknowledged hears nothing but the beginning of a packet.
        channel.send_raw(_ACKNOWLEDGED)
        channel.interrupt()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._still.wait()
        except TimeoutError as error:
            raise GdbstubTimeout("interrupt", _STOP_S) from error

    def run(self) -> None:
        """This lets the guest run, or one vCPU do the step that a debugger waits for."""
        channel = self._channel
        if channel is None or channel.running or channel.ended:
            return
        self._asked_to_stop = False
        self._still.clear()
        waiting = (one for one in self._debuggers if one.mode is Mode.STEPS)
        self._stepping = next(waiting, None)
        everybody = (None, Resume.CONTINUE)
        if self._stepping is None:
            channel.resume("resume", resume_request([everybody]))
            return
        thread, others = self._stepping.step
        actions: list[tuple[ThreadId | None, Resume]] = [(thread, Resume.STEP)]
        channel.resume("step", resume_request([*actions, *([everybody] if others else [])]))

    async def _watch(self, channel: Channel) -> None:
        """This tells the debuggers of stops, until the stub has gone."""
        while not channel.ended:
            stop: StopReply | Exited
            try:
                stop = await channel.next_stop()
            except GdbstubRequestFailed:  # it would not let the guest run
                # Whoever wanted a step is told, or it would be tried without an end.
                stop = StopReply(_TRAP, self._stepping.step[0] if self._stepping else self._current)
            except QvmiError:
                self._still.set()
                for debugger in [*self._debuggers]:
                    debugger.stopped(Exited(0, by_force=False))
                return
            self._standstill.join(self)  # nobody lets it run before it is clear who is told
            self._still.set()
            try:
                for debugger in await self._concerned(stop):
                    debugger.stopped(stop)
            except QvmiError as error:
                _log.warning("the gdbstub: %s", error)
            finally:
                await self._standstill.release(self)

    async def _concerned(self, stop: StopReply | Exited) -> Sequence[Debugger]:
        """These are the debuggers for whom the guest has stopped."""
        waiting = [one for one in self._debuggers if one.mode in {Mode.RUNS, Mode.STEPS}]
        stepping, self._stepping = self._stepping, None
        if isinstance(stop, Exited):
            return waiting
        if stop.reason in _WATCHED:
            return [one for one in waiting if self._watches(one, stop.address)]
        if stop.signal != _TRAP:
            if self._asked_to_stop:
                return []
            # Neither a breakpoint nor we: the guest's owner has stopped it, and it stays so.
            self._standstill.taken()
            return waiting
        if stepping is not None and stop.thread in {None, stepping.step[0]}:
            return [stepping]
        return await self._at_breakpoint(waiting, stop.thread or self._current)

    def _watches(self, debugger: Debugger, address: int | None) -> bool:
        return any(
            debugger in owners
            and one.kind not in _AT_PC
            and (address is None or one.address <= address < one.address + max(one.size, 1))
            for one, owners in self._breakpoints.items()
        )

    async def _at_breakpoint(
        self, waiting: Sequence[Debugger], thread: ThreadId
    ) -> Sequence[Debugger]:
        """These are those who have a breakpoint where a vCPU stands, or any where that is not known."""
        address: int | None = None
        if self._pc is not None:
            number, size = self._pc
            request = read_register(number)
            reply = await self.ask("where it stands", thread, request)
            address = int.from_bytes(hex_data(request, reply, size), "little")
        owners = [
            debugger
            for one, owners in self._breakpoints.items()
            if one.kind in _AT_PC and address in {None, one.address}
            for debugger in owners
        ]
        return [one for one in waiting if one in owners]
