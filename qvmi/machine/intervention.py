"""What interferes with a guest: breakpoints and writes, where the session's policy grants them."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from qvmi.addr import Pa, Va
from qvmi.machine.control import Control
from qvmi.policy import AddressRange, Grant, Policy, Space
from qvmi.semantics.guest_os import Process

if TYPE_CHECKING:
    from qvmi.gdbstub.packets import BreakpointKind
    from qvmi.machine.holding.breakpoints import Condition, HitStream
    from qvmi.machine.holding.writing import MemoryWrite, RegisterWrite

__all__ = ["Intervention"]


class Intervention(ABC):
    """This is the part of a :class:`~qvmi.machine.machine.Machine` that interferes with its guest."""

    _control: Control

    @property
    def policy(self) -> Policy:
        """This is what may be done to the guest."""
        return self._control.policy

    @abstractmethod
    async def _address_of(self, symbol: str) -> Va:
        """This is the address of a symbol of the kernel or a module."""

    @asynccontextmanager
    async def breakpoints(
        self,
        place: str | Va,
        *,
        condition: "Condition | None" = None,
        kind: "BreakpointKind | None" = None,
        size: int = 1,
    ) -> "AsyncIterator[HitStream]":
        """This iterates the hits of a breakpoint or watchpoint, on all vCPUs, while the block lasts.

        Each hit stops the guest for some 5 ms under TCG, wanted or not: a busy function makes a
        guest crawl.

        Args:
            place: a symbol of the kernel or a module, or a virtual address.
            condition: tells which hits are wanted; asked while the guest stands still.
            kind: what is waited for; a software breakpoint unless told otherwise.
            size: bytes, for a watchpoint.

        Raises:
            PolicyDenied: the session has not the grant ``breakpoint``.
            SymbolNotFound: there is no such symbol.
            PauseError: the guest stands still, by its owner or within a pause.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            UsageError: QEMU starts no gdbstub.
            GdbstubRequestFailed: it refuses the breakpoint.
            MachineGone, GdbstubTimeout: QEMU did not answer.
        """
        self.policy.require(Grant.BREAKPOINT, "set a breakpoint")
        name = place if isinstance(place, str) else f"{place:#x}"
        va = await self._address_of(place) if isinstance(place, str) else place
        where = AddressRange(Space.VIRTUAL, va, size)
        self._control.require(Grant.BREAKPOINT, f"set a breakpoint at {name}", where)
        async with self._control.breakpoints.at(name, va, condition, kind=kind, size=size) as hits:
            yield hits

    async def write_physical(self, pa: Pa, data: bytes) -> "MemoryWrite":
        """This writes guest physical memory while the guest stands still; see `Writing.physical`."""
        return await self._control.writing.physical(pa, data)

    async def write_virtual(
        self, va: Va, data: bytes, *, process: Process | None = None, even_shared: bool = False
    ) -> "MemoryWrite":
        """This writes memory of the kernel or of a process; see `Writing.virtual`."""
        return await self._control.writing.virtual(va, data, process, even_shared=even_shared)

    async def write_registers(self, vcpu: int, values: Mapping[str, int]) -> "RegisterWrite":
        """This writes registers of a vCPU while the guest stands still; see `Writing.registers`."""
        return await self._control.writing.registers(vcpu, values)
