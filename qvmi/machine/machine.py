"""A live guest that was attached to: looking at it, never stopping it unless asked."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from qvmi.arch.x86_64 import Registers
from qvmi.errors import MachineGone, QvmiError, StaleView, UnknownGuest, UsageError
from qvmi.machine.memory_ladder import MemoryAttempt, OpenedMemory
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.memory_map import MemoryMap
from qvmi.memory.physical import PhysicalMemory
from qvmi.qmp import commands
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.selection import Choices, remember, select, select_known
from qvmi.symbols.layout import Symbols
from qvmi.view import Provenance, Taken, View

__all__ = ["Machine", "MachineFacts"]

_logger = logging.getLogger(__name__)

_LOOKS: Final = 4
"""Looks at a guest that is not recognised, each by other page tables."""
_NEW_GUEST_EVENTS: Final = ("RESET",)
"""After these another guest may run, or the same one at other addresses."""


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """This is what is known of the virtual machine, whatever runs in it.

    Args:
        address: how it was attached to.
        name: what QEMU was told to call it; empty for nothing.
        qemu_version: such as ``7.2.22``.
        run_state: QEMU's word, such as ``running`` or ``paused``.
        vcpus: how many virtual CPUs there are.
        ram_size: bytes of the guest's RAM.
        epoch: counts resets since the attach.
        memory: the ways to the memory that were tried.
    """

    address: str
    name: str
    qemu_version: str
    run_state: str
    vcpus: int
    ram_size: int
    epoch: int
    memory: tuple[MemoryAttempt, ...]


class Machine:
    """This is a running QEMU that was attached to. :func:`qvmi.attach` makes it.

    Args:
        monitor: the conversation with QEMU, which this owns from now on.
        memory_map: where the guest's RAM lies.
        opened: the guest's memory, which this owns from now on.
        vcpus: the registers of every vCPU.
        choices: what is used to understand the guest.
    """

    def __init__(
        self,
        monitor: Monitor,
        memory_map: MemoryMap,
        opened: OpenedMemory,
        *,
        vcpus: tuple[Registers, ...],
        choices: Choices,
    ) -> None:
        self._monitor = monitor
        self._opened = opened
        self._choices = choices
        self._vcpus = vcpus
        self._guest: LinuxGuest | None = None
        self._unknown: QvmiError | None = None
        self.memory_map = memory_map

    @property
    def address(self) -> str:
        """This is how the machine was attached to."""
        return self._monitor.target

    @property
    def epoch(self) -> int:
        """This counts how often the machine was reset since the attach."""
        counts = self._monitor.run_state_events
        return sum(counts.get(name, 0) for name in _NEW_GUEST_EVENTS)

    @property
    def memory(self) -> PhysicalMemory:
        """This is the guest's physical memory."""
        return self._opened.memory

    @property
    def memory_ladder(self) -> tuple[MemoryAttempt, ...]:
        """These are the ways to the memory that were tried, the fastest first."""
        return self._opened.attempts

    @property
    def view(self) -> View:
        """This is a live look: the registers as last read, the memory as it is when it is read."""
        epoch = self.epoch
        provenance = Provenance(Taken.LIVE, time.time(), epoch=epoch)
        return View(self._vcpus, self.memory, provenance, partial(self._require_epoch, epoch))

    @property
    def guest(self) -> LinuxGuest:
        """This is the operating system that runs in the machine.

        Raises:
            UnknownGuest: none was recognised; :meth:`refresh` looks again.
            StaleView: the machine was reset since it was recognised; :meth:`refresh` looks again.
            MachineGone: QEMU has ended.
        """
        if self._guest is None:
            raise self._unknown or UnknownGuest("nobody has looked yet which system runs here")
        self._guest.view.require_current()
        return self._guest

    @property
    def symbols(self) -> Symbols:
        """These are the symbols of the kernel that runs; raises as :attr:`guest` does."""
        return self.guest.kernel.symbols

    @property
    def kernel_space(self) -> AddressSpace:
        """This is the kernel's address space; raises as :attr:`guest` does."""
        return self.guest.kernel.space

    def user_space(self, process: Process) -> AddressSpace:
        """This is the address space of a process of the guest.

        Raises:
            WalkFailed: it has none, as kernel threads and zombies.
            UnknownGuest, StaleView: as :attr:`guest`.
        """
        return self.guest.user_space(process)

    async def registers(self) -> tuple[Registers, ...]:
        """This reads the registers of all vCPUs without stopping the guest.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        self._vcpus = await commands.registers(self._monitor)
        return self._vcpus

    async def run_state(self) -> commands.RunState:
        """This asks QEMU whether the vCPUs run; it is also how to learn that QEMU is gone.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        return await commands.run_state(self._monitor)

    async def facts(self) -> MachineFacts:
        """This asks QEMU for what it says of the machine.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        async with concurrently() as group:
            status = group.create_task(commands.run_state(self._monitor))
            version = group.create_task(commands.version(self._monitor))
            name = group.create_task(commands.name(self._monitor))
        return MachineFacts(
            address=self.address,
            name=name.result(),
            qemu_version=str(version.result()),
            run_state=status.result().status,
            vcpus=len(self._vcpus),
            ram_size=sum(ram.size for ram in self.memory.ranges),
            epoch=self.epoch,
            memory=self.memory_ladder,
        )

    async def refresh(self) -> None:
        """This looks again which system runs, as after a reset; :attr:`guest` then tells.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        await self.registers()
        await self.recognise()

    async def recognise(self) -> None:
        """This works out which system runs from the registers as last read.

        What was found, or why nothing was, :attr:`guest` tells.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        for _ in range(_LOOKS):
            # What was seen before takes a millisecond, what was not takes many, in a thread.
            if self._recognise(select_known) or await asyncio.to_thread(self._recognise, select):
                return
            # The page tables may have been those of a process that has ended in the meantime.
            before = {vcpu.cr3 for vcpu in self._vcpus}
            if before == {vcpu.cr3 for vcpu in await self.registers()}:
                return

    async def close(self) -> None:
        """This ends the session; the guest goes on as it was. What was learned is kept."""
        if self._guest is not None:
            try:
                remember(self._guest, self._choices)
            except UsageError as error:
                _logger.warning("the profile of this kernel is not kept: %s", error)
        self._opened.memory.close()
        await self._monitor.close()

    def _require_epoch(self, epoch: int) -> None:
        """This raises unless the machine is still there, and was not reset since."""
        if self._monitor.ended:
            raise MachineGone("looking at the guest")
        if self.epoch != epoch:
            raise StaleView("the machine was reset since it was looked at: refresh()")

    def _recognise(self, look: Callable[[View, Choices], LinuxGuest | None]) -> bool:
        """This tells whether one way of looking has recognised what runs."""
        self._guest, self._unknown = None, None
        try:
            self._guest = look(self.view, self._choices)
        except QvmiError as error:
            self._unknown = error
        return self._guest is not None
