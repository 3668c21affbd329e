"""What shows of a machine what its memory does not: gdb by its stub, and its virtual disks."""

from functools import cached_property
from typing import TYPE_CHECKING

from qvmi.machine.control import Control
from qvmi.machine.guest_tools import GuestTools

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from qvmi.gdbstub.gdb_session import GdbSession
    from qvmi.machine.disks import Disks
    from qvmi.machine.gdb_host import GdbHost
    from qvmi.qmp.monitor import Monitor

__all__ = ["OtherTools"]


class OtherTools(GuestTools):
    """This is the part of a :class:`~qvmi.machine.machine.Machine` that other tools use.

    Args:
        control: the hold on the machine.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    @property
    def monitor(self) -> "Monitor":
        """This is the conversation with QEMU, for those who manage the machine."""
        return self._control.monitor

    @cached_property
    def disks(self) -> "Disks":
        """These are the machine's virtual disks, read from the host while the guest runs."""
        from qvmi.machine.disks import Disks  # noqa: PLC0415 - import time, for a rare need

        return Disks(self._control, lambda: self.view.provenance)

    def gdb(self, *, may_write: bool = False) -> "AbstractAsyncContextManager[GdbSession]":
        """This is gdb on the live guest, with the names of its kernel and modules, for a block.

        The guest stands still from the block's beginning; a command such as ``continue`` lets it run.

        Args:
            may_write: lets gdb write registers and memory, and use QEMU's monitor.

        Raises:
            PolicyDenied: the session has not the grant ``breakpoint``, or to write ``write``.
            UsageError: there is no gdb, or QEMU starts no gdbstub.
            PauseError: the guest is stopped by a pause of this process.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            GdbError: gdb does not start.
            MachineGone, GdbstubTimeout: QEMU did not answer.
        """
        return self.gdb_host(may_write=may_write).session()

    def gdb_host(self, *, may_write: bool = False) -> "GdbHost":
        """This gives the machine to any gdb, such as one on a terminal; see :meth:`gdb`."""
        return self._control.gdb_host(may_write=may_write)
