"""Stopping a machine and letting it run on, whatever happens in between.

A pause nests: the first block that wants the guest to stand still stops it, the last one lets it
run. A guest that its owner had stopped before is not ours to let run, nor is one that somebody else
has let run, or has migrated, in the meantime.

References: QEMU ``qapi/run-state.json`` (``RunState``), ``softmmu/runstate.c`` (``do_vm_stop``,
``qemu_system_reset``) and ``migration/migration.c``, 7.2: a ``stop`` of a machine that stands still
says nothing to anybody, a ``cont`` is an event for every client.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from qvmi.errors import PauseError, QmpCommandFailed, QvmiError, StaleView, UsageError
from qvmi.machine.completion import ended
from qvmi.machine.holding.guardian import Guardian, start_guardian
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor

if TYPE_CHECKING:
    from qvmi.machine.holding.debugger import Work  # it is imported with the first breakpoint

__all__ = ["Pause", "PauseMaker", "RunControl", "StillReader", "StubHolder"]

Result = TypeVar("Result")

_STOPPED: Final = frozenset({"paused", "debug", "prelaunch"})
"""What QEMU calls a machine that was stopped and can go on; the last one if it was reset since."""
_ELSEWHERE: Final = frozenset({"finish-migrate", "inmigrate", "postmigrate"})
"""What QEMU calls a machine whose guest runs, or ran, in another QEMU: here it must not run too."""
_SOMEBODY_ELSE: Final = "somebody else has let the guest run while it was to stand still"


class StubHolder(Protocol):
    """This is who holds the gdbstub, and so decides when the guest stands still."""

    def still(self) -> AbstractAsyncContextManager[None]:
        """This keeps the guest from running for as long as the block lasts, or raises PauseError."""
        ...

    async def standing(self, work: "Work[Result]") -> Result:
        """This does something while the guest stands still, or raises PauseError."""
        ...


@dataclass(slots=True)
class Pause:
    """This is one time for which the guest stands still.

    Args:
        ours: whether qvmi has stopped it; else its owner had before.
        count: counts how often QEMU has said that the machine runs again.
        held: what keeps the guest from running, where that is not QMP's `stop`.

    Attributes:
        at: when it began, seconds since the Unix epoch.
        over: whether it has ended.
        ending: what is to be done before the guest may run again, last things first.
    """

    ours: bool
    count: Callable[[], int]
    held: AsyncExitStack | None = None
    at: float = field(default_factory=time.time)
    over: bool = False
    ending: AsyncExitStack = field(default_factory=AsyncExitStack)
    _began: float = field(default_factory=time.monotonic)
    _lasted_s: float = 0.0
    _counted: int = 0

    def __post_init__(self) -> None:
        self.stands()

    def stands(self) -> None:
        """This notes that the guest stands still from here on."""
        self._counted = self.count()

    @property
    def broken(self) -> bool:
        """This tells whether QEMU has said that somebody let the guest run since."""
        return self.count() != self._counted

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
        if self.broken:
            raise StaleView(_SOMEBODY_ELSE)


class PauseMaker(Protocol):
    """This stops a guest and lets it run, here or by the hand of another process."""

    async def prepare(self) -> object:
        """This does beforehand what the first pause would wait for."""
        ...

    def paused(self) -> AbstractAsyncContextManager[Pause]:
        """This keeps the guest from running for as long as the block lasts."""
        ...


class StillReader(Protocol):
    """This reads the guest in another way while it stands still."""

    def begin_still(self) -> None:
        """This is told that the guest stands still from now on."""
        ...

    def end_still(self) -> None:
        """This is told that the guest goes on as soon as this is done."""
        ...


class RunControl:
    """This stops and resumes one machine.

    Args:
        monitor: the conversation with its QEMU.

    Attributes:
        debugger: who holds the gdbstub, if anybody: then the guest is stopped there and not here.
        reader: who is told of pauses.
        stood_still_s: for how long all pauses that are over have lasted, in seconds.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.debugger: StubHolder | None = None
        self.reader: StillReader | None = None
        self.stood_still_s = 0.0
        self._monitor = monitor
        self._guardian: Guardian | None = None
        self._lock = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._closed = False
        self._pause: Pause | None = None
        self._holders = 0
        self._free = asyncio.Event()
        self._free.set()

    @property
    def pause(self) -> Pause | None:
        """This is the pause that goes on, if any."""
        return self._pause

    def require_pause(self) -> Pause:
        """This is the pause that goes on.

        Raises:
            StaleView: there is none any more.
        """
        if self._pause is None:
            raise StaleView("the pause has ended: look within its block")
        return self._pause

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[Pause]:
        """This keeps the guest from running for as long as the block lasts.

        Raises:
            PauseError: there is no guardian, so nothing was stopped.
            StaleView: somebody else has let the guest run in the meantime, or the machine was
                closed; raised at the end.
            UsageError: the machine was closed before.
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
            UsageError: the machine was closed.
        """
        async with self._starting:
            if self._guardian is not None and not self._guardian.alive:
                await self._end_guardian()
            if self._guardian is None:
                self._require_open()
                monitor = self._monitor
                self._guardian = await start_guardian(monitor.descriptor, monitor.cont_command)
            return self._guardian

    async def refuse(self) -> None:
        """This ends the pause that another task may be in, and refuses further ones."""
        async with self._lock:
            self._closed = True
            pause, self._pause = self._pause, None
            self._free.set()
            with suppress(QvmiError):  # whoever is in the pause learns that it has ended
                if pause is not None:
                    await self._end(pause)

    async def close(self) -> bool:
        """This ends the guardian, or tells that the machine is left to it.

        A guest that could not be let run before is tried once more. If it still cannot be, as QEMU is
        frozen, the guardian goes on trying: it needs QEMU's answers, and must be the only one that
        reads them.
        """
        await self.refuse()
        async with self._starting:
            return await self._end_guardian()

    async def _end_guardian(self) -> bool:
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return False
        if guardian.stopped:
            with suppress(QvmiError):
                await self._let_run()
                guardian.note_stopped(stopped=False)
        left = guardian.alive and guardian.stopped
        await asyncio.to_thread(guardian.leave if left else guardian.close)
        return left

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError(f"pause: {self._monitor.target} was closed")

    async def _enter(self) -> Pause:
        async with self._lock:
            if self._pause is None:
                self._pause = await self._stop()
                self._free.clear()
                if self.reader is not None:
                    self.reader.begin_still()
                    self._pause.ending.callback(self.reader.end_still)
            self._holders += 1
            return self._pause

    async def _leave(self) -> None:
        async with self._lock:
            self._holders -= 1
            if self._pause is None:
                raise StaleView("the machine was closed while its guest was to stand still")
            if self._holders:
                return
            pause, self._pause = self._pause, None
            self._free.set()
            await self._end(pause)

    async def _stop(self) -> Pause:
        self._require_open()
        await self.prepare()
        if self.debugger is not None:
            return await self._held(self.debugger)
        if not (await commands.run_state(self._monitor)).running:
            return Pause(ours=False, count=self._resumes)
        # From here on the guest may stand still, even if no answer to the command ever comes.
        self._note_stopped(stopped=True)
        pause = Pause(ours=True, count=self._resumes)
        try:
            await commands.stop(self._monitor)
        except QvmiError:
            with suppress(StaleView):  # it was refused, and so the guest has run on
                await self._resume(pause)
            raise
        pause.stands()
        return pause

    async def _held(self, debugger: StubHolder) -> Pause:
        """This stops the guest by way of whoever holds the gdbstub."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(debugger.still())
            # With this answer has come what QEMU said of the guest's runs before.
            await commands.run_state(self._monitor)
            return Pause(ours=True, count=self._resumes, held=stack.pop_all())
        raise AssertionError("the block returns, or raises")

    async def _end(self, pause: Pause) -> None:
        try:
            await pause.ending.aclose()
        finally:
            try:
                await self._resume(pause)
            finally:
                self.stood_still_s += pause.lasted_s

    async def _resume(self, pause: Pause) -> None:
        """This ends a pause.

        Raises:
            StaleView: it had been ended by somebody else, who now is to say whether the guest runs.
        """
        try:
            status = await commands.run_state(self._monitor)
            taken_over = status.running or pause.broken
            if not taken_over and pause.ours and pause.held is None:
                await self._let_run(status)
        finally:
            pause.end()
            if pause.held is not None:
                await pause.held.aclose()
        if pause.ours and pause.held is None:
            self._note_stopped(stopped=False)
        if taken_over:
            raise StaleView(_SOMEBODY_ELSE)
        if status.status in _ELSEWHERE:
            raise StaleView(f"somebody else has migrated the guest meanwhile ({status.status})")

    async def _let_run(self, status: commands.RunState | None = None) -> None:
        """This lets the guest run, unless it has moved."""
        status = status or await commands.run_state(self._monitor)
        if status.running or status.status in _ELSEWHERE:
            return
        try:
            await commands.cont(self._monitor)
        except QmpCommandFailed as error:  # as of a machine that has shut down
            if status.status in _STOPPED:
                raise PauseError(
                    "QEMU refuses to let the guest run on; see query-status"
                ) from error

    def _resumes(self) -> int:
        return self._monitor.run_state_events.get("RESUME", 0)

    def _note_stopped(self, *, stopped: bool) -> None:
        if self._guardian is not None:
            self._guardian.note_stopped(stopped=stopped)
