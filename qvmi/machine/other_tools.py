"""What shows of a machine what its memory does not: gdb by its stub, its disks and its network."""

from abc import abstractmethod
from functools import cached_property, partial
from typing import TYPE_CHECKING, TypeVar

from qvmi.machine.control import Control
from qvmi.machine.guest_tools import GuestTools
from qvmi.machine.query import QUERY_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from qvmi.gdbstub.gdb_session import GdbSession
    from qvmi.machine.devices.disk_differences import DiskDifference
    from qvmi.machine.devices.disks import Disks
    from qvmi.machine.devices.flow_watch import Flow, FlowWatch
    from qvmi.machine.holding.gdb_host import GdbHost
    from qvmi.policy import Grant
    from qvmi.qmp.monitor import Monitor
    from qvmi.semantics.guest_os import Listing
    from qvmi.semantics.linux.guest import LinuxGuest

__all__ = ["OtherTools"]

Result = TypeVar("Result")


class OtherTools(GuestTools):
    """This is the part of a :class:`~qvmi.machine.machine.Machine` that other tools use.

    Args:
        control: the hold on the machine.
    """

    def __init__(self, control: Control) -> None:
        self._control = control

    @abstractmethod
    async def query(
        self,
        look: "Callable[[LinuxGuest], Result]",
        *,
        timeout_s: float = QUERY_TIMEOUT_S,
        still: bool = True,
    ) -> Result:
        """This looks at the guest in a thread, whichever way its memory is read."""

    @property
    def monitor(self) -> "Monitor":
        """This is the conversation with QEMU, for those who manage the machine."""
        return self._control.monitor

    @cached_property
    def disks(self) -> "Disks":
        """These are the machine's virtual disks, read from the host while the guest runs."""
        from qvmi.machine.devices.disks import Disks  # noqa: PLC0415 - import time, for a rare need

        return Disks(self._control, lambda: self.view.provenance)

    async def disk_differences(self, under: str = "") -> "Listing[DiskDifference]":
        """This compares what the guest has of files in memory with what is on its disks.

        Args:
            under: an absolute path: only files below it; empty for all.

        Raises:
            PolicyDenied: the session has not the grant ``disk``.
            UnknownGuest, StaleView, SymbolsError: as :attr:`guest`, and its types.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        from qvmi.machine.devices.disk_differences import (  # noqa: PLC0415 - import time, for a rare need
            disk_differences,
        )

        return await disk_differences(self.query, self.disks, under=under)

    async def flows(
        self, seconds: float, *, netdev: str | None = None, least_looks: int = 1
    ) -> "Listing[Flow]":
        """This has QEMU capture what passes a network card for so long, and tells whose flows it was.

        Names that DNS has told in an earlier watching are remembered. Two of them take turns.

        Args:
            seconds: how long.
            netdev: id of what is behind the card; None for the only one.
            least_looks: looks at the sockets that are taken, though the time is over.

        Raises:
            PolicyDenied: the session has not the grant ``network-capture``.
            UsageError: there is no such netdev, or QEMU cannot capture there.
            CorruptCapture: what QEMU wrote is no capture.
            PauseError: the process that is to clean up if this one is killed cannot be started.
            UnknownGuest, StaleView: as :attr:`guest`.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        return await self._flow_watch.watch(seconds, netdev=netdev, least_looks=least_looks)

    @cached_property
    def _flow_watch(self) -> "FlowWatch":
        from qvmi.machine.devices.flow_watch import FlowWatch, look_of  # noqa: PLC0415 - import time, for a rare need
        from qvmi.machine.devices.network_capture import capturing  # noqa: PLC0415 - as above

        return FlowWatch(partial(capturing, self._control), lambda: self.query(look_of))

    async def netdevs(self) -> tuple[str, ...]:
        """This asks for the ids of what is behind the machine's network cards.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        from qvmi.qmp.devices import netdevs  # noqa: PLC0415 - import time, for a rare need

        return await netdevs(self._control.monitor)

    async def lacks(self, grant: "Grant") -> str:
        """This is why the machine has nothing that a grant would show, in words.

        Returns:
            An empty text where it has a disk that is read, or a network card; and for all other grants.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        from qvmi.machine.devices.lacking import lacking  # noqa: PLC0415 - import time, for a rare need

        return await lacking(grant, self.disks.list, self.netdevs)

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
