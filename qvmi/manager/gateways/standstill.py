"""Who keeps a guest from running: it runs when nobody does, if it ran before.

References: QEMU ``qapi/run-state.json``; see :mod:`qvmi.machine.holding.guardian` for who lets it run when
this process is killed.
"""

import asyncio
import logging
import math
import time
from contextlib import suppress
from typing import Final, Protocol

from qvmi.audit import LOGGER
from qvmi.errors import PauseError, QmpCommandFailed, QvmiError
from qvmi.machine.completion import to_the_end
from qvmi.machine.holding.guardian import Guardian, start_guardian
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor

__all__ = ["Runner", "Standstill"]

_STOPPED: Final = frozenset({"paused", "debug", "prelaunch"})
"""What QEMU calls a machine that was stopped and can go on."""

_LOOK_S: Final = 0.25
"""So often it is looked at how long somebody has held the guest, where that is bounded."""

_audit: Final = logging.getLogger(LOGGER)


class Runner(Protocol):
    """This lets the guest run and stops it in place of QMP: whoever holds the gdbstub."""

    @property
    def running(self) -> bool:
        """This tells whether the guest was let run here, and has not stopped since."""
        ...

    async def stop(self) -> None:
        """This stops the guest, which runs."""
        ...

    def run(self) -> None:
        """This lets the guest run, if it stands still."""
        ...


class Standstill:
    """This keeps account of one machine.

    Args:
        monitor: the conversation with its QEMU.

    Attributes:
        runner: who holds the gdbstub, if anybody.
        ours: the guest ran, and was stopped for one of the holders.
        epoch: counts how often the guest may have run since.
        stood_still_s: for how long the guest has stood still for holders in all, in seconds.
    """

    def __init__(self, monitor: Monitor) -> None:
        self.runner: Runner | None = None
        self.ours = False
        self.epoch = 0
        self.stood_still_s = 0.0
        self._since: float | None = None
        self._monitor = monitor
        self._guardian: Guardian | None = None
        self._holders: dict[object, float] = {}
        self._lock = asyncio.Lock()
        self._starting = asyncio.Lock()

    @property
    def held(self) -> bool:
        """This tells whether anybody keeps the guest from running."""
        return bool(self._holders)

    def holds(self, holder: object) -> bool:
        """This tells whether this one does."""
        return holder in self._holders

    async def guardian(self) -> Guardian:
        """This is the process that lets the guest run if this one is killed.

        Raises:
            PauseError: it cannot be started, so nothing may be stopped.
        """
        async with self._starting:
            if self._guardian is None or not self._guardian.alive:
                monitor = self._monitor
                self._guardian = await start_guardian(monitor.descriptor, monitor.cont_command)
            return self._guardian

    async def runs(self) -> bool:
        """This asks QEMU whether the guest runs."""
        return (await commands.run_state(self._monitor)).running

    async def hold(self, holder: object) -> None:
        """This keeps the guest from running until the holder lets go of it.

        Raises:
            QvmiError: the guest does not stand still, and the holder is none.
        """
        self.join(holder)
        try:
            await to_the_end(self._settle())
        except QvmiError:
            await self.release(holder)
            raise

    def join(self, holder: object) -> None:
        """This makes somebody a holder who finds the guest standing still."""
        now = time.monotonic()
        self._holders.setdefault(holder, now)
        if self.ours and self._since is None:
            self._since = now

    async def too_long(self, holder: object, longest_s: float | None) -> None:
        """This returns when somebody has held the guest for too long; never where nothing is too long."""
        if longest_s is None:
            await asyncio.Event().wait()
            return
        while (  # noqa: ASYNC110 - there is no event; who holds the guest changes all the time
            time.monotonic() - self._holders.get(holder, math.inf) < longest_s
        ):
            await asyncio.sleep(min(longest_s / 8, _LOOK_S))
        _audit.warning("refused: %s: holds the guest for more than %g s", holder, longest_s)

    async def release(self, holder: object) -> None:
        """This lets go of the guest, which runs on unless somebody else holds it."""
        self._holders.pop(holder, None)
        await to_the_end(self._settle())

    def _note_running(self) -> float:
        """This ends the time for which the guest has stood still for holders, and is that, in seconds."""
        lasted = 0.0 if self._since is None else time.monotonic() - self._since
        self._since = None
        self.stood_still_s += lasted
        return lasted

    def taken(self) -> None:
        """This notes that the guest's owner has stopped it: it stays so."""
        self._note_running()
        self.ours = False
        self.epoch += 1
        if self._guardian is not None:
            with suppress(PauseError):
                self._guardian.note_stopped(stopped=False)

    async def given_back(self) -> None:
        """This notes that the guest's owner had let it run, and that it stands still because of us."""
        (await self.guardian()).note_stopped(stopped=True)
        self.ours = True
        self.epoch += 1

    async def close(self) -> bool:
        """This lets the guest run, whoever has held it, or tells that it is left to the guardian.

        A QEMU that is frozen lets it run once it answers again: then the guardian must be the only one
        that reads its answers.
        """
        self._holders.clear()
        with suppress(QvmiError):
            await to_the_end(self._settle())
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return False
        left = guardian.alive and guardian.stopped
        await asyncio.to_thread(guardian.leave if left else guardian.close)
        return left

    async def _settle(self) -> None:
        async with self._lock:
            if self._holders:
                await self._stand()
            else:
                await self._run()

    async def _stand(self) -> None:
        if self.runner is not None and self.runner.running:
            await self.runner.stop()
        elif not await self.runs():
            return
        elif self.runner is not None:
            await self._take_back(self.runner)
        else:
            # From here on the guest may stand still, even if no answer to the command ever comes.
            (await self.guardian()).note_stopped(stopped=True)
            self.ours = True
            self._since = time.monotonic()
            await commands.stop(self._monitor)
            _audit.info("gateway: the guest is stopped")

    async def _take_back(self, runner: Runner) -> None:
        """This stops a guest that its owner has let run while somebody held it."""
        await self.given_back()
        await runner.stop()

    async def _run(self) -> None:
        if not self.ours:
            return
        self.epoch += 1
        if self.runner is not None:
            if not self.runner.running and await self.runs():
                # A request to run would stop it, and be lost.
                await self._take_back(self.runner)
            self.runner.run()
            self._note_running()
            return
        status = await commands.run_state(self._monitor)
        if not status.running and status.status in _STOPPED:
            with suppress(QmpCommandFailed):  # it has been moved, or has shut down, meanwhile
                await commands.cont(self._monitor)
        lasted = self._note_running()
        self.taken()
        _audit.info("gateway: the guest goes on, after %.1f ms", lasted * 1000)
