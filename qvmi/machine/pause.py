"""Stopping a machine and letting it run on, whatever happens in between.

A pause nests: the first block that wants the guest to stand still stops it, the last one lets it
run. A guest that its owner had stopped before is not ours to let run.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from qvmi.errors import PauseError, QmpCommandFailed, QvmiError, StaleView
from qvmi.machine.completion import ended
from qvmi.machine.guardian import Guardian
from qvmi.qmp import commands
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import Monitor

__all__ = ["Pause", "RunControl", "StubHolder"]

_STOPPED: Final = frozenset({"paused", "debug"})
"""What QEMU calls a machine that was stopped and can go on."""


class StubHolder(Protocol):
    """This is who holds the gdbstub, and so decides when the guest stands still."""

    def still(self) -> AbstractAsyncContextManager[None]:
        """This keeps the guest from running for as long as the block lasts, or raises PauseError."""
        ...


@dataclass(slots=True)
class Pause:
    """This is one time for which the guest stands still.

    Args:
        ours: whether qvmi has stopped it; else its owner had before.
        held: what keeps the guest from running, where that is not QMP's `stop`.

    Attributes:
        at: when it began, seconds since the Unix epoch.
        over: whether it has ended.
    """

    ours: bool
    held: AsyncExitStack | None = None
    at: float = field(default_factory=time.time)
    over: bool = False
    _began: float = field(default_factory=time.monotonic)
    _lasted_s: float = 0.0

    @property
    def lasted_s(self) -> float:
        """This is for how long qvmi has let the guest stand still, so far or in all, in seconds."""
        if not self.ours:
            return 0.0
        return self._lasted_s if self.over else time.monotonic() - self._began

    def end(self) -> None:
        """This notes that the guest runs, or may run."""
        if not self.over:
            self._lasted_s = time.monotonic() - self._began
            self.over = True

    def require(self) -> None:
        """This raises StaleView once the guest may run again."""
        if self.over:
            raise StaleView("the pause has ended: look within its block")


class RunControl:
    """This stops and resumes one machine.

    Args:
        monitor: the conversation with its QEMU.

    Attributes:
        debugger: who holds the gdbstub, if anybody: then the guest is stopped there and not here.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.debugger: StubHolder | None = None
        self._monitor = monitor
        self._guardian: Guardian | None = None
        self._lock = asyncio.Lock()
        self._pause: Pause | None = None
        self._holders = 0
        self._free = asyncio.Event()
        self._free.set()

    @property
    def pause(self) -> Pause | None:
        """This is the pause that goes on, if any."""
        return self._pause

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[Pause]:
        """This keeps the guest from running for as long as the block lasts.

        Raises:
            PauseError: there is no guardian, so nothing was stopped.
            StaleView: somebody else has let the guest run in the meantime; raised at the end.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        entering = asyncio.ensure_future(self._enter())
        cancelled = await ended(entering)
        pause = entering.result()
        try:
            if cancelled is not None:
                raise cancelled
            yield pause
        finally:
            leaving = asyncio.ensure_future(self._leave())
            cancelled = await ended(leaving)
            leaving.result()
            if cancelled is not None:
                raise cancelled

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """This keeps everybody from pausing for as long as the block lasts, once no pause is left."""
        while True:
            await self._free.wait()
            async with self._lock:
                if self._pause is None:
                    yield
                    return

    async def prepare(self) -> Guardian:
        """This starts the guardian, so that the first pause does not wait for it, and gives it.

        Raises:
            PauseError: it cannot be started.
        """
        if self._guardian is not None and not self._guardian.alive:
            await self.close()
        if self._guardian is None:
            monitor = self._monitor
            self._guardian = await asyncio.to_thread(
                Guardian.start, monitor.descriptor, monitor.cont_command
            )
        return self._guardian

    async def close(self) -> None:
        """This ends the guardian; a guest that could not be let run before is tried once more."""
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        if guardian.stopped:
            with suppress(QvmiError):
                await self._cont()
        await asyncio.to_thread(guardian.close)

    async def _enter(self) -> Pause:
        async with self._lock:
            if self._pause is None:
                self._pause = await self._stop()
                self._free.clear()
            self._holders += 1
            return self._pause

    async def _leave(self) -> None:
        async with self._lock:
            self._holders -= 1
            if self._holders or self._pause is None:
                return
            pause, self._pause = self._pause, None
            self._free.set()
            await self._resume(pause)

    async def _stop(self) -> Pause:
        if self.debugger is not None:
            held = AsyncExitStack()
            await held.enter_async_context(self.debugger.still())
            return Pause(ours=True, held=held)
        await self.prepare()
        if not (await commands.run_state(self._monitor)).running:
            return Pause(ours=False)
        # From here on the guest may stand still, even if no answer to the command ever comes.
        self._note_stopped(stopped=True)
        pause = Pause(ours=True)
        try:
            await commands.stop(self._monitor)
        except QvmiError:
            with suppress(StaleView):  # it was refused, and so the guest has run on
                await self._resume(pause)
            raise
        return pause

    async def _resume(self, pause: Pause) -> None:
        """This ends a pause.

        Raises:
            StaleView: it had been ended by somebody else.
        """
        if pause.held is not None:
            pause.end()
            await pause.held.aclose()
            return
        if not pause.ours:
            status = await commands.run_state(self._monitor)
        else:
            status = await self._cont()
            self._note_stopped(stopped=False)
        pause.end()
        if status.running:
            raise StaleView("somebody else has let the guest run while it was to stand still")

    async def _cont(self) -> commands.RunState:
        """This lets the guest run, and says what it did until then."""
        async with concurrently() as group:
            # Sent together, carried out in this order.
            status = group.create_task(commands.run_state(self._monitor))
            cont = group.create_task(_unless_refused(commands.cont(self._monitor)))
        if not cont.result() and status.result().status in _STOPPED:
            raise PauseError("QEMU refuses to let the guest run on; see query-status")
        return status.result()

    def _note_stopped(self, *, stopped: bool) -> None:
        if self._guardian is not None:
            self._guardian.note_stopped(stopped=stopped)


async def _unless_refused(command: Coroutine[Any, Any, None]) -> bool:
    """This tells whether QEMU did as told; a machine that has shut down cannot run on."""
    try:
        await command
    except QmpCommandFailed:
        return False
    return True
