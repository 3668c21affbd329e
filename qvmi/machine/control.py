"""What stops, watches and changes one machine, each part made when it is first needed."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING

from qvmi.errors import PolicyDenied, QvmiError
from qvmi.machine.holding.pause import Pause, RunControl
from qvmi.machine.recognition import Recognition
from qvmi.policy import AddressRange, Grant, Policy, PolicyGate, refuse
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.linux.guest import LinuxGuest

if TYPE_CHECKING:
    from qvmi.machine.events.event_control import EventControl
    from qvmi.machine.holding.breakpoint_control import BreakpointControl
    from qvmi.machine.holding.gdb_host import GdbHost
    from qvmi.machine.holding.stub_loan import StubLoan
    from qvmi.machine.holding.writing import Writing

__all__ = ["Control"]


class Control:
    """This is the hold on one machine. What has to do with its gdbstub is imported with its first use.

    Args:
        monitor: the conversation with QEMU.
        recognition: which system runs, as far as that is known.
        gdb: the address of the gdbstub that the user named; None to find or start one.
        policy: what may be done to the guest.

    Attributes:
        monitor: the conversation with QEMU.
        run_control: stops the guest and lets it run.
        stub_named: whether the user has named the gdbstub.
        watching: who watches for events.
    """

    def __init__(
        self, monitor: Monitor, recognition: Recognition, *, gdb: str | None, policy: Policy
    ) -> None:
        self.run_control = RunControl(monitor)
        self.recognition = recognition
        self.policy = policy
        self._gate = PolicyGate("", policy)
        self.stub_named = gdb is not None
        self.watching: set[EventControl] = set()
        self.monitor = self._monitor = monitor
        self._gdb = gdb

    def require(
        self,
        grant: Grant,
        action: str,
        place: AddressRange | None = None,
        *,
        size: int | None = None,
    ) -> None:
        """This takes note of an access that the policy allows, and raises PolicyDenied where it does not."""
        self._gate.require(grant, action, now=time.monotonic(), place=place, size=size)

    def require_unbounded_pause(self, action: str) -> None:
        """This raises PolicyDenied unless the guest may be stopped for as long as the action takes."""
        self._gate.require_unbounded_pause(action, now=time.monotonic())

    @asynccontextmanager
    async def paused(self, action: str) -> AsyncIterator[Pause]:
        """This keeps the guest from running while the block lasts, but for no longer than is granted.

        A block that lasts longer is cancelled, and the guest runs on.

        Raises:
            PolicyDenied: the grant ``pause`` is not held, or the block has lasted too long.
        """
        self.require(Grant.PAUSE, action)
        longest = self._gate.longest_pause_s
        if longest is None:
            async with self.run_control.paused() as pause:
                yield pause
            return
        timer = asyncio.timeout(None)
        try:
            async with self.run_control.paused() as pause, timer:
                timer.reschedule(asyncio.get_running_loop().time() + longest)
                yield pause
        except TimeoutError:
            if not timer.expired():  # it is the block's own
                raise
            refuse(PolicyDenied(action, Grant.PAUSE, reason=f"longer than {longest:g} s"))

    @cached_property
    def stub(self) -> "StubLoan":
        """This lends the gdbstub within pauses."""
        from qvmi.machine.holding.stub_loan import StubLoan  # noqa: PLC0415 - import time, for a rare need

        return StubLoan(self._monitor, self.run_control, self._gdb)

    @cached_property
    def breakpoints(self) -> "BreakpointControl":
        """This sets breakpoints, and holds the gdbstub for them."""
        from qvmi.machine.holding.breakpoint_control import (  # noqa: PLC0415 - import time, for a rare need
            BreakpointControl,
        )

        return BreakpointControl(
            self._monitor, self.run_control, self._gdb, lambda: self.recognition.guest
        )

    @cached_property
    def writing(self) -> "Writing":
        """This changes the guest, if the policy lets it."""
        from qvmi.machine.holding.writing import Writing  # noqa: PLC0415 - import time, for a rare need

        return Writing(
            self._monitor, self.run_control, self.stub, require=self.require, guest=self._current
        )

    def gdb_host(self, *, may_write: bool) -> "GdbHost":
        """This gives the machine to gdb, if the policy lets it.

        Raises:
            PolicyDenied: it does not.
        """
        from qvmi.machine.holding.gdb_host import GdbHost  # noqa: PLC0415 - import time, for a rare need

        # What gdb does with the stub behind its gate nobody counts: it is all or nothing.
        self.policy.require_all(Grant.BREAKPOINT, "give the guest to gdb")
        self.policy.require_all(Grant.READ_MEMORY, "give the guest to gdb")
        if may_write:
            self.policy.require_all(Grant.WRITE, "let gdb write")
        return GdbHost(
            self._monitor, self.run_control, self._gdb, self._current, may_write=may_write
        )

    async def end_work(self) -> None:
        """This waits for the end of a write that is under way, and refuses others; who watches ends."""
        for watching in tuple(self.watching):
            with suppress(QvmiError):
                await watching.close()
        if "writing" in vars(self):
            await self.writing.close()

    async def close(self) -> bool:
        """This lets go of the machine; the guest runs if it ran before.

        Returns:
            Whether the machine is left to the guardian, since QEMU does not answer.
        """
        await self.run_control.refuse()
        if "breakpoints" in vars(self):
            with suppress(QvmiError):  # the guardian sees to what could not be done
                await self.breakpoints.close()
        return await self.run_control.close()

    def _current(self) -> LinuxGuest:
        """This is the guest, unless it was reset since it was recognised."""
        guest = self.recognition.require()
        guest.view.require_current()
        return guest
