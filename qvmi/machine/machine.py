"""A live guest that was attached to: looking at it, never stopping it unless asked."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from qvmi.addr import Va
from qvmi.arch.registers import Registers
from qvmi.errors import MachineGone, QvmiError, StaleView, UnknownGuest, UsageError
from qvmi.machine.capture import Capture
from qvmi.machine.dump import Dump, DumpFile
from qvmi.machine.facts import MachineFacts
from qvmi.machine.memory_ladder import MemoryAttempt, OpenedMemory
from qvmi.machine.pause import Pause, RunControl
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.memory_map import MemoryMap
from qvmi.memory.physical import PhysicalMemory
from qvmi.qmp import commands
from qvmi.qmp.concurrency import concurrently
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.selection import Choices, remember, select, select_known
from qvmi.symbols.layout import Symbols, address
from qvmi.view import Provenance, Taken, View

__all__ = ["Machine"]

if TYPE_CHECKING:
    from qvmi.gdbstub.packets import BreakpointKind
    from qvmi.machine.breakpoint_control import BreakpointControl
    from qvmi.machine.breakpoints import Condition, HitStream

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)

_LOOKS: Final = 4
"""Looks at a guest that is not recognised, each by other page tables."""
_NEW_GUEST_EVENTS: Final = ("RESET",)
"""After these another guest may run, or the same one at other addresses."""


class Machine:
    """This is a running QEMU that was attached to. :func:`qvmi.attach` makes it.

    Args:
        monitor: the conversation with QEMU, which this owns from now on.
        memory_map: where the guest's RAM lies.
        opened: the guest's memory, which this owns from now on.
        vcpus: the registers of every vCPU.
        choices: what is used to understand the guest.
        gdb: the address of the gdbstub; None to find or start one when it is needed.
    """

    def __init__(
        self,
        monitor: Monitor,
        memory_map: MemoryMap,
        opened: OpenedMemory,
        *,
        vcpus: tuple[Registers, ...],
        choices: Choices,
        gdb: str | None = None,
    ) -> None:
        self._monitor = monitor
        self._opened = opened
        self._choices = choices
        self._vcpus = vcpus
        self._guest: LinuxGuest | None = None
        self._unknown: QvmiError | None = None
        self._run_control = RunControl(monitor)
        self._exact: LinuxGuest | None = None
        self._gdb = gdb
        self._stub_pause_s = 0.0
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
        provenance = Provenance(Taken.LIVE, time.time(), self._stub_pause_s, epoch)
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
        guest = self._exact or self._guest
        guest.view.require_current()
        return guest

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

    async def system_registers(self) -> View:
        """This reads the registers of all vCPUs by the gdbstub, which has all of them.

        The guest stands still for some milliseconds, which the view's provenance tells. On aarch64
        it is the only way to the system registers, such as ``TTBR1_EL1``.

        Raises:
            PauseError: a pause goes on, or the guest cannot be stopped safely.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            UsageError: QEMU starts no gdbstub.
            MachineGone, GdbstubTimeout, GdbstubProtocolError: QEMU did not answer.
        """
        from qvmi.machine.stub_look import (  # noqa: PLC0415 - import time, for a rare need
            look_by_stub,
            registers_of,
        )

        look = await look_by_stub(self._monitor, self._run_control, self._gdb, registers_of)
        provenance = Provenance(Taken.CAPTURED, look.at, look.pause_s, self.epoch)
        return View(look.found, self.memory, provenance, self.view.require_current)

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

        What was found, or why nothing was, :attr:`guest` tells. The guest is not stopped for it, but
        where that fails on aarch64 and a gdbstub was named at the attach.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
            PauseError, AttachError, UsageError: the gdbstub that was named cannot be used.
        """
        self._stub_pause_s = 0.0
        await self._recognise_by_monitor()
        if self._guest is None and self._gdb is not None and _lack_roots(self._vcpus):
            view = await self.system_registers()
            self._vcpus, self._stub_pause_s = view.vcpus, view.provenance.pause_s
            await asyncio.to_thread(self._recognise, select)

    async def _recognise_by_monitor(self) -> None:
        """This is :meth:`recognise` without stopping the guest."""
        for _ in range(_LOOKS):
            # What was seen before takes a millisecond, what was not takes many, in a thread.
            if self._recognise(select_known) or await asyncio.to_thread(self._recognise, select):
                return
            # The page tables may have been those of a process that has ended in the meantime.
            before = {vcpu.root_register for vcpu in self._vcpus}
            if before == {vcpu.root_register for vcpu in await self.registers()}:
                return

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[View]:
        """This keeps the guest from running for as long as the block lasts.

        Within it :attr:`guest` answers for the moment of the pause, and says so. Blocks may nest. A
        guest that its owner had paused stays paused afterwards; one that ran goes on to run,
        whatever happens to this process.

        Raises:
            PauseError: the guest cannot be stopped safely.
            StaleView: somebody else has let it run in the meantime; raised at the block's end.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        async with self._run_control.paused() as pause:
            vcpus = await commands.registers(self._monitor)
            view, before = self._still(pause, vcpus), self._exact
            if self._guest is not None:
                self._exact = self._guest.over(view)
            try:
                yield view
            finally:
                self._exact = before

    async def capture(self, walk: Callable[[LinuxGuest], Result]) -> Result:
        """This does a walk that sees the guest at one moment, with the shortest pause that can be had.

        Args:
            walk: looks at the guest and returns what it found. It is called several times, also
                on the running guest to learn what it reads, and in other threads.

        Raises:
            PauseError: the walk takes too long to stop the guest for it, and reads something
                else each time; :meth:`paused` stops it for as long as you want.
            UnknownGuest, StaleView: as :attr:`guest`.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        return await Capture(self._run_control, self.guest, self._still).of(walk)

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
            SymbolNotFound: there is no such symbol.
            PauseError: the guest stands still, by its owner or within a pause.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            UsageError: QEMU starts no gdbstub.
            GdbstubRequestFailed: it refuses the breakpoint.
            MachineGone, GdbstubTimeout: QEMU did not answer.
        """
        va = Va(place) if isinstance(place, int) else address(self.symbols, place)
        name = place if isinstance(place, str) else f"{place:#x}"
        async with self._breakpoints.at(name, va, condition, kind=kind, size=size) as hits:
            yield hits

    @cached_property
    def _breakpoints(self) -> "BreakpointControl":
        from qvmi.machine.breakpoint_control import (  # noqa: PLC0415 - import time, for a rare need
            BreakpointControl,
        )

        return BreakpointControl(self._monitor, self._run_control, self._gdb, lambda: self._guest)

    async def dump(self, path: Path, *, live: bool = False) -> Dump:
        """This writes the guest's memory to an ELF core file, which debuggers and Volatility open.

        The guest stands still meanwhile, some 0.2 s for each GiB it uses. The file has holes where
        the guest has never written, and replaces what was there only when it is whole.

        Args:
            path: of the file.
            live: lets the guest run; the dump is then a mixture of many moments.

        Raises:
            UsageError: the file cannot be written, or the disk has not room for it.
            PauseError: the guest cannot be stopped safely.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        file = DumpFile(path, self.memory)
        try:
            note = b"" if self._guest is None else self._guest.vmcoreinfo()
            return await file.take(self._monitor, self._run_control, note, live=live)
        finally:
            file.close()

    def _still(self, pause: Pause, vcpus: tuple[Registers, ...] = ()) -> View:
        """This is a look at the guest while it stands still."""
        live = self.view

        def require_current() -> None:
            live.require_current()
            pause.require()

        provenance = Provenance(Taken.PAUSED, pause.at, epoch=live.provenance.epoch)
        return View(vcpus, self.memory, provenance, require_current, lambda: pause.lasted_s)

    async def close(self) -> None:
        """This ends the session; the guest goes on as it was. What was learned is kept."""
        if self._guest is not None:
            try:
                remember(self._guest, self._choices)
            except UsageError as error:
                _logger.warning("the profile of this kernel is not kept: %s", error)
        await self._run_control.close()
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


def _lack_roots(vcpus: tuple[Registers, ...]) -> bool:
    """This tells whether the monitor did not tell where the page tables are."""
    return any(vcpu.root_register is None for vcpu in vcpus)
