"""What stops, watches and changes one machine, each part made when it is first needed."""

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING

from qvmi.errors import QvmiError
from qvmi.machine.pause import RunControl
from qvmi.machine.recognition import Recognition
from qvmi.policy import Grant, Policy
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.linux.guest import LinuxGuest

if TYPE_CHECKING:
    from qvmi.machine.breakpoint_control import BreakpointControl
    from qvmi.machine.gdb_host import GdbHost
    from qvmi.machine.stub_loan import StubLoan
    from qvmi.machine.writing import Writing

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
    """

    def __init__(
        self, monitor: Monitor, recognition: Recognition, *, gdb: str | None, policy: Policy
    ) -> None:
        self.run_control = RunControl(monitor)
        self.recognition = recognition
        self.policy = policy
        self.stub_named = gdb is not None
        self.monitor = self._monitor = monitor
        self._gdb = gdb

    @cached_property
    def stub(self) -> "StubLoan":
        """This lends the gdbstub within pauses."""
        from qvmi.machine.stub_loan import StubLoan  # noqa: PLC0415 - import time, for a rare need

        return StubLoan(self._monitor, self.run_control, self._gdb)

    @cached_property
    def breakpoints(self) -> "BreakpointControl":
        """This sets breakpoints, and holds the gdbstub for them."""
        from qvmi.machine.breakpoint_control import (  # noqa: PLC0415 - import time, for a rare need
            BreakpointControl,
        )

        return BreakpointControl(
            self._monitor, self.run_control, self._gdb, lambda: self.recognition.guest
        )

    @cached_property
    def writing(self) -> "Writing":
        """This changes the guest, if the policy lets it."""
        from qvmi.machine.writing import Writing  # noqa: PLC0415 - import time, for a rare need

        return Writing(
            self._monitor, self.run_control, self.stub, policy=self.policy, guest=self._current
        )

    def gdb_host(self, *, may_write: bool) -> "GdbHost":
        """This gives the machine to gdb, if the policy lets it.

        Raises:
            PolicyDenied: it does not.
        """
        from qvmi.machine.gdb_host import GdbHost  # noqa: PLC0415 - import time, for a rare need

        self.policy.require(Grant.BREAKPOINT, "give the guest to gdb")
        if may_write:
            self.policy.require(Grant.WRITE, "let gdb write")
        return GdbHost(
            self._monitor, self.run_control, self._gdb, self._current, may_write=may_write
        )

    async def stop_writing(self) -> None:
        """This waits for the end of a write that is under way, and refuses others."""
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
