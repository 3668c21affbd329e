"""One hold on a machine's gdbstub, shared by everyone who sets breakpoints.

A stub serves one client, and attaching to it stops the guest. So there is one session for all; it is
begun by the first who needs it and ended by the last. While it lasts, it alone stops the guest and lets
it run: whoever wants a standstill asks for it here, and is let in between two runs.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

from qvmi.addr import Va
from qvmi.arch import aarch64, x86_64
from qvmi.errors import MachineGone, QvmiError
from qvmi.gdbstub.client import Breakpoint, GdbClient
from qvmi.gdbstub.packets import Exited, StopReply, ThreadId

__all__ = ["Debugger", "Stop", "Work"]

Result = TypeVar("Result")
Work = Callable[[GdbClient], Awaitable[Result]]
"""What is done while the guest stands still."""

_CURRENT_TASK: Final = "SP_EL0"
"""Where Linux keeps it on aarch64; the stub does not count it among the core registers."""
_TRAP: Final = 5
"""The signal of a breakpoint; another is of somebody who stopped the guest."""


@dataclass(frozen=True, slots=True)
class Stop:
    """This is one time that a vCPU stood at a place that somebody waits for.

    Args:
        thread: the vCPU.
        registers: of that vCPU.
        pc: where it stands.
        watched: what was accessed, for a watchpoint.
    """

    thread: ThreadId
    registers: x86_64.Registers | aarch64.Registers
    pc: Va
    watched: int | None


class Debugger:
    """This lets a guest run from stop to stop.

    Args:
        client: the session, of a guest that stands still; this owns it from now on.
        on_stop: is told of each stop, while the guest stands still; must neither wait nor raise.
        on_end: is told when the session has ended, and by what.

    Attributes:
        stops: how often the guest has stopped.
        stood_still_s: for how long in all, in seconds.
    """

    def __init__(
        self,
        client: GdbClient,
        on_stop: Callable[[Stop], None],
        on_end: Callable[[QvmiError], None],
    ) -> None:
        self._client = client
        self._on_stop = on_stop
        self._on_end = on_end
        self._works: deque[tuple[Work[object], asyncio.Future[object]]] = deque()
        self._news = asyncio.Event()
        self._still = 0
        self.stops = 0
        self.stood_still_s = 0.0
        self._running = asyncio.create_task(self._run(), name="qvmi debugger")

    async def standing(self, work: Work[Result]) -> Result:
        """This does something while the guest stands still, which is stopped for it if it runs.

        Raises:
            QvmiError: what the work raised, or MachineGone.
        """
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self._running.done():
            raise MachineGone("stopping the guest by the gdbstub")
        self._works.append((work, done))
        self._news.set()
        with suppress(MachineGone):  # the task that runs the guest tells
            self._client.ask_to_stop()
        return await done  # type: ignore[return-value] # what this very work has returned

    @asynccontextmanager
    async def still(self) -> AsyncIterator[None]:
        """This keeps the guest from running for as long as the block lasts."""
        self._still += 1
        try:
            await self.standing(_nothing)
            yield
        finally:
            self._still -= 1
            self._news.set()

    async def leave(self, before_detach: Callable[[], None]) -> None:
        """This ends the session: no breakpoint is left, and the guest goes on if it ran before.

        Args:
            before_detach: is called when nothing but letting the guest run is left to do.
        """
        self._running.cancel()
        await asyncio.wait({self._running})
        self._fail(MachineGone("the gdbstub was let go of"))
        if self._client.ended:
            return
        if self._client.was_running is False:
            await self._client.leave_stopped()
        else:
            await self._client.detach(before_detach)

    async def _run(self) -> None:
        """This lets the guest run from stop to stop, for as long as there is a session."""
        try:
            await self._work()
            await self._client.resume()
            while True:
                stop = await self._client.next_stop()
                began = time.monotonic()
                if isinstance(stop, Exited):
                    raise MachineGone("a breakpoint")
                over = await self._look(stop)
                await self._work()
                await self._go_on(stop.thread, over)
                self.stops += 1
                self.stood_still_s += time.monotonic() - began
        except QvmiError as error:
            self._fail(error)
            self._on_end(error)

    async def _look(self, stop: StopReply) -> Sequence[Breakpoint]:
        """This tells of a stop, and is what the vCPU stands at."""
        if stop.signal != _TRAP or stop.thread is None:
            return ()
        registers = _typed(stop.thread, await self._values(stop.thread))
        pc = registers.rip if isinstance(registers, x86_64.Registers) else registers.pc
        self._on_stop(Stop(stop.thread, registers, Va(pc), stop.address))
        return [one for one in self._client.breakpoints if one.address == pc]

    async def _values(self, thread: ThreadId) -> Mapping[str, int]:
        """These are the registers of a vCPU, by name, with what tells the task that it runs."""
        stub = self._client.registers
        values = await stub.read(thread)
        if _CURRENT_TASK not in (await stub.description()).by_name:
            return values
        return values | await stub.read_named(thread, [_CURRENT_TASK])

    async def _work(self) -> None:
        """This does what others want done at a standstill, and waits for as long as they want one."""
        while self._works or self._still:
            if not self._works:
                self._news.clear()
                await self._news.wait()
                continue
            work, done = self._works.popleft()
            try:
                result = await work(self._client)
            except QvmiError as error:
                _settle(done, error)
                if self._client.ended:
                    raise
            else:
                if not done.done():
                    done.set_result(result)

    async def _go_on(self, thread: ThreadId | None, over: Sequence[Breakpoint]) -> None:
        still_there = [one for one in over if one in self._client.breakpoints]
        if thread is not None and still_there:
            await self._client.resume_over(thread, still_there)
        else:
            await self._client.resume()

    def _fail(self, error: QvmiError) -> None:
        while self._works:
            _settle(self._works.popleft()[1], error)


def _typed(thread: ThreadId, values: Mapping[str, int]) -> x86_64.Registers | aarch64.Registers:
    """This is what a vCPU holds, by its architecture."""
    if "rip" in values:
        return x86_64.registers_of_stub(thread.vcpu, values)
    return aarch64.registers_of_stub(thread.vcpu, values)


def _settle(done: asyncio.Future[object], error: QvmiError) -> None:
    if not done.done():
        done.set_exception(error)


async def _nothing(_: GdbClient) -> None:
    """This is the work of whoever only wants the guest to stand still."""
