"""A debugger's session with a QEMU: attach, look, change, step, break, and leave in good order.

References: GDB manual, "Remote Protocol"; QEMU ``docs/system/gdb.rst``.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import msgspec

from qvmi.addr import Pa, Va
from qvmi.errors import GdbstubTimeout, MemoryFault, QvmiError, UsageError
from qvmi.gdbstub.channel import ANSWER_TIMEOUT_S, Channel
from qvmi.gdbstub.connection import CONNECT_TIMEOUT_S, Attached, attach
from qvmi.gdbstub.memory import PHYSICAL_SPACE, MemoryRead, StubMemory, virtual_space
from qvmi.gdbstub.packets import (
    ANY_THREAD,
    VIRTUAL,
    WHY_STOPPED,
    BreakpointKind,
    Exited,
    Features,
    Resume,
    StopReply,
    ThreadId,
    breakpoint_request,
    check_ok,
    detach_request,
    is_stop,
    resume_request,
    strange,
)
from qvmi.gdbstub.registers import StubRegisters
from qvmi.gdbstub.target_description import TargetDescription
from qvmi.host.address import SocketAddress, parse_socket_address

__all__ = ["Breakpoint", "GdbClient"]

# A guest stops within milliseconds; on a machine that swaps, QEMU may hold its lock for seconds.
_STOP_TIMEOUT_S: Final = ANSWER_TIMEOUT_S
_LEAVE_TIMEOUT_S: Final = 2.0


class Breakpoint(msgspec.Struct, frozen=True):
    """This is a breakpoint or watchpoint, on every vCPU.

    Args:
        address: virtual.
        kind: what it waits for.
        size: of the range that a watchpoint watches; for a breakpoint what gdb calls its kind, 1 on
            x86-64 and 4 on aarch64.
    """

    address: Va
    kind: BreakpointKind = BreakpointKind.SOFTWARE
    size: int = 1


class GdbClient:
    """This holds a gdbstub; only `connect` makes one.

    The guest stands still from the moment of the connection. `detach` lets it run, whoever had stopped
    it; `leave_stopped` does not. Without either (a killed process) it stays stopped, with its
    breakpoints in place, and the next client clears those away. As an ``async with`` block it leaves
    the guest as it was found, and running where that is not known.

    Attributes:
        was_running: the guest ran before; None where this QEMU (8.1 and later) does not tell, and the
            caller did not either.
        registers: the vCPUs and what is in them.
        breakpoints: what is inserted.
    """

    def __init__(
        self,
        attached: Attached,
        *,
        was_running: bool | None,
        description: TargetDescription | None,
    ) -> None:
        self.was_running = attached.was_running if was_running is None else was_running
        self.registers = StubRegisters(attached.channel, description)
        self.breakpoints: frozenset[Breakpoint] = frozenset()
        self._channel: Channel = attached.channel
        self._features: Features = attached.features
        self._process = attached.current.process
        self._memory = StubMemory(attached.channel, attached.features)

    @classmethod
    async def connect(
        cls,
        address: str | os.PathLike[str] | SocketAddress,
        *,
        timeout_s: float = CONNECT_TIMEOUT_S,
        was_running: bool | None = None,
        description: TargetDescription | None = None,
    ) -> Self:
        """This attaches, which stops the guest and removes whatever breakpoints a former client left.

        Args:
            address: a path, or HOST:PORT.
            timeout_s: how long that may take.
            was_running: what the caller knows, from QMP, about the guest's run state before.
            description: what an earlier session with the same machine has read.

        Raises:
            UsageError: the address has none of the documented forms.
            SocketUnreachable: nobody listens there, or the socket may not be opened.
            GdbstubBusy: another debugger holds the stub; it says which, where the kernel tells.
            NotGdbstub: what listens there speaks something else.
        """
        place = parse_socket_address(address) if isinstance(address, str | os.PathLike) else address
        attached = await attach(place, timeout_s=timeout_s)
        return cls(attached, was_running=was_running, description=description)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._channel.ended:
            return
        # Where the block failed, its error is the one to tell of.
        with suppress(*(() if error is None else (QvmiError,))):
            if self.was_running is False:
                await self.leave_stopped()
            else:
                await self.detach()

    @property
    def target(self) -> str:
        """This is the address, as errors name it."""
        return self._channel.target

    @property
    def features(self) -> Features:
        """This is what the stub offers."""
        return self._features

    @property
    def running(self) -> bool:
        """This tells whether the guest runs because it was told to here."""
        return self._channel.running

    @property
    def ended(self) -> bool:
        """This tells whether the session is over."""
        return self._channel.ended

    @property
    def descriptor(self) -> int:
        """This is the connection's file descriptor; a duplicate holds the stub as this does.

        Raises:
            MachineGone: it is closed.
        """
        return self._channel.connection().fileno()

    @property
    def process(self) -> int | None:
        """This is the process of the vCPUs, which whoever detaches has to name."""
        return self._process

    @property
    def stops_lost(self) -> int:
        """This counts the stop replies that nobody fetched in time."""
        return self._channel.stops_lost

    async def read_physical(self, pa: Pa, size: int) -> bytes:
        """This reads guest physical memory; see `PHYSICAL_SPACE` for what is not RAM."""
        return await self._memory.read(pa, size, PHYSICAL_SPACE)

    async def read_virtual(self, va: Va, size: int, *, thread: ThreadId = ANY_THREAD) -> bytes:
        """This reads memory as a vCPU sees it.

        Raises:
            MemoryFault: with the first address that is not mapped.
        """
        return await self._memory.read(va, size, virtual_space(thread))

    async def read_many_physical(self, reads: Sequence[MemoryRead]) -> list[bytes | MemoryFault]:
        """This reads many ranges of guest physical memory, in order."""
        return await self._memory.read_many(reads, PHYSICAL_SPACE)

    async def read_many_virtual(
        self, reads: Sequence[MemoryRead], *, thread: ThreadId = ANY_THREAD
    ) -> list[bytes | MemoryFault]:
        """This reads many ranges as a vCPU sees them; each one's bytes or its fault, in order."""
        return await self._memory.read_many(reads, virtual_space(thread))

    async def write_physical(self, pa: Pa, data: bytes) -> None:
        """This writes guest physical memory."""
        await self._memory.write(pa, data, PHYSICAL_SPACE)

    async def write_virtual(self, va: Va, data: bytes, *, thread: ThreadId = ANY_THREAD) -> None:
        """This writes memory as a vCPU sees it, read-only pages too."""
        await self._memory.write(va, data, virtual_space(thread))

    async def insert(self, breakpoint_: Breakpoint) -> None:
        """This inserts a breakpoint or watchpoint; inserted twice, it is there once.

        Raises:
            GdbstubRequestFailed: the stub refused.
        """
        if breakpoint_ not in self.breakpoints:
            await self._change(breakpoint_, insert=True)
            self.breakpoints |= {breakpoint_}

    async def remove(self, breakpoint_: Breakpoint) -> None:
        """This removes a breakpoint or watchpoint, where it is inserted.

        Raises:
            GdbstubRequestFailed: the stub refused.
        """
        if breakpoint_ in self.breakpoints:
            await self._change(breakpoint_, insert=False)
            self.breakpoints -= {breakpoint_}

    async def _change(self, one: Breakpoint, *, insert: bool) -> None:
        requests = [VIRTUAL, breakpoint_request(one.kind, one.address, one.size, insert=insert)]
        doing = "insert a breakpoint" if insert else "remove a breakpoint"
        for request, reply in zip(requests, await self._channel.ask(doing, requests), strict=True):
            check_ok(request, reply)

    async def resume(self) -> None:
        """This lets all vCPUs run; `next_stop` tells when they stand still again."""
        self._channel.resume("resume", resume_request([(None, Resume.CONTINUE)]))

    async def next_stop(self) -> StopReply | Exited:
        """This waits until the guest stands still, for as long as that takes.

        Raises:
            GdbstubRequestFailed: the stub refused to let it run.
            MachineGone: QEMU ended first.
        """
        return await self._channel.next_stop()

    def ask_to_stop(self) -> None:
        """This stops the guest if it runs; `next_stop` tells when, or of what came first."""
        if self.running:
            self._channel.interrupt()

    async def interrupt(self) -> StopReply | Exited:
        """This stops the guest, and is the stop; that of a breakpoint, if it came first.

        Raises:
            UsageError: the guest stands still already.
            GdbstubTimeout: it does not stop.
        """
        if self.running:
            self._channel.interrupt()
        elif not self._channel.stop_is_waiting:
            raise UsageError("interrupt: the guest stands still already")
        return await self._stop_within("interrupt")

    async def step(
        self, thread: ThreadId, *, over: Sequence[Breakpoint] = ()
    ) -> StopReply | Exited:
        """This lets one vCPU execute one instruction while the others stand still.

        QEMU holds back interrupts and timers meanwhile.

        Args:
            thread: the vCPU.
            over: inserted breakpoints at that instruction, which are lifted for the moment: nobody
                can miss them, as nobody else runs.
        """
        lifted = [one for one in over if one in self.breakpoints]
        for one in lifted:
            await self.remove(one)
        try:
            self._channel.resume("step", resume_request([(thread, Resume.STEP)]))
            return await self._stop_within("step")
        finally:
            # A guest that does not come back from its step keeps none of them.
            if not self.running and not self.ended:
                for one in lifted:
                    await self.insert(one)

    async def resume_over(self, thread: ThreadId, over: Sequence[Breakpoint]) -> None:
        """This lets all vCPUs run, the one that stands at breakpoints from behind these."""
        await self.step(thread, over=over)
        await self.resume()

    async def _stop_within(self, doing: str) -> StopReply | Exited:
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                return await self._channel.next_stop()
        except TimeoutError as error:
            raise GdbstubTimeout(doing, _STOP_TIMEOUT_S) from error

    async def detach(self, before: Callable[[], None] | None = None) -> None:
        """This removes all breakpoints, lets the guest run, and ends the session.

        Args:
            before: is called when no breakpoint is left and the guest is let run next.

        Raises:
            MachineGone: QEMU ended first.
            GdbstubTimeout: the stub does not answer; the session is ended all the same.
        """
        if before is not None:
            await self._clear("detach")
            before()
        await self._leave("detach", [detach_request(self._process)])

    async def leave_stopped(self) -> None:
        """This removes all breakpoints, and ends the session with the guest standing still.

        Raises:
            MachineGone: QEMU ended first.
            GdbstubTimeout: the stub does not answer; the session is ended all the same.
        """
        await self._leave("leave", [])

    async def hand_over(self) -> socket.socket:
        """This ends the session without a word, and gives its connection to whoever goes on with it.

        Raises:
            MachineGone: QEMU ended first.
        """
        connection = socket.socket(fileno=os.dup(self.descriptor))
        connection.settimeout(0)
        await self._channel.close()
        return connection

    async def _clear(self, doing: str) -> None:
        """This removes all breakpoints; whatever goes wrong in it, `_leave` ends the session."""
        with suppress(QvmiError):
            if self.running:
                await self.interrupt()
            await self._channel.ask(doing, [WHY_STOPPED], timeout_s=_LEAVE_TIMEOUT_S)

    async def _leave(self, doing: str, last: Sequence[bytes]) -> None:
        try:
            if self.running:
                await self.interrupt()
            requests = [VIRTUAL, WHY_STOPPED, *last]
            replies = await self._channel.ask(doing, requests, timeout_s=_LEAVE_TIMEOUT_S)
            check_ok(requests[0], replies[0])
            if not is_stop(replies[1]):
                raise strange(WHY_STOPPED, replies[1])
            for request, reply in zip(last, replies[2:], strict=True):
                check_ok(request, reply)
            await self._channel.hang_up()
        finally:
            self.breakpoints = frozenset()
            await self._channel.close()
