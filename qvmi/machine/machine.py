"""A live guest that was attached to: looking at it, never stopping it unless asked."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from qvmi.addr import Va
from qvmi.arch.registers import Registers
from qvmi.errors import MachineGone, StaleView
from qvmi.machine.capture import Capture
from qvmi.machine.control import Control
from qvmi.machine.dump import Dump, DumpFile
from qvmi.machine.facts import MachineFacts, ask_facts
from qvmi.machine.guest_watching import GuestWatching
from qvmi.machine.holding.pause import Pause
from qvmi.machine.other_tools import OtherTools
from qvmi.machine.query import QUERY_TIMEOUT_S, Query
from qvmi.machine.ways.fenced_memory import FencedMemory
from qvmi.machine.ways.memory_ladder import MemoryAttempt, OpenedMemory
from qvmi.machine.ways.still_looks import StillLooks
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.memory_map import MemoryMap
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.symbols.layout import address
from qvmi.view import Provenance, Taken, View

__all__ = ["Machine"]

if TYPE_CHECKING:
    from qvmi.semantics.linux.kernel.guest_symbols import GuestSymbols

Result = TypeVar("Result")

_NEW_GUEST_EVENTS: Final = ("RESET",)
"""After these another guest may run, or the same one at other addresses."""


class Machine(GuestWatching, OtherTools):
    """This is a running QEMU that was attached to. :func:`qvmi.attach` makes it.

    Args:
        monitor: the conversation with QEMU, which this owns from now on.
        memory_map: where the guest's RAM lies.
        opened: the guest's memory, which this owns from now on.
        control: the hold on the machine, which this owns from now on.
        vcpus: the registers of every vCPU.
    """

    def __init__(
        self,
        monitor: Monitor,
        memory_map: MemoryMap,
        opened: OpenedMemory,
        control: Control,
        *,
        vcpus: tuple[Registers, ...],
    ) -> None:
        self._monitor = monitor
        self._opened = opened
        self._vcpus = vcpus
        super().__init__(control)
        self._recognition = control.recognition
        self._run_control = control.run_control
        self._run_control.reader = opened.remote
        self._stills = StillLooks()
        self._stub_pause_s = 0.0
        self.memory_map = memory_map
        self._memory: PhysicalMemory = opened.memory
        if not self.policy.allows_all(Grant.READ_MEMORY):
            self._memory = FencedMemory(opened.memory, control.require)

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
        """This is the guest's physical memory, which the event loop can read only where it is direct.

        Where the session may read only within limits, each read is held against them.
        """
        return self._memory

    @property
    def is_direct(self) -> bool:
        """This tells whether the memory answers at once, without a conversation with QEMU."""
        return self._opened.remote is None

    @property
    def stood_still_s(self) -> float:
        """This is for how long qvmi has let the guest stand still since the attach, in seconds."""
        return self._run_control.stood_still_s

    @property
    def memory_ladder(self) -> tuple[MemoryAttempt, ...]:
        """These are the ways to the memory that were tried, the fastest first."""
        return self._opened.attempts

    @property
    def view(self) -> View:
        """This is a live look: the registers as last read, the memory as it is when it is read.

        There are no registers in it where the session has not the grant ``read-registers``.
        """
        return self._view_of(self._allowed(self._vcpus), self.memory)

    def _view_of(self, vcpus: tuple[Registers, ...], memory: PhysicalMemory) -> View:
        epoch = self.epoch
        provenance = Provenance(Taken.LIVE, time.time(), self._stub_pause_s, epoch)
        return View(vcpus, memory, provenance, partial(self._require_epoch, epoch))

    def _allowed(self, vcpus: tuple[Registers, ...]) -> tuple[Registers, ...]:
        return vcpus if self.policy.allows(Grant.READ_REGISTERS) else ()

    @property
    def guest(self) -> LinuxGuest:
        """This is the operating system that runs in the machine.

        Raises:
            NotDirect: its memory has to be asked for; :meth:`query` does that.
            UnknownGuest: none was recognised; :meth:`refresh` looks again.
            StaleView: the machine was reset since it was recognised; :meth:`refresh` looks again.
            PolicyDenied: the session may not read all memory.
            MachineGone: QEMU has ended.
        """
        if self._opened.remote is not None:
            raise self._opened.remote.not_direct()
        return self._recognised

    @property
    def _recognised(self) -> LinuxGuest:
        """This is the guest, however its memory is read; raises as :attr:`guest` does."""
        self.policy.require_all(Grant.READ_MEMORY, "understand the guest")
        guest = self._stills.guest or self._recognition.require()
        guest.view.require_current()
        return guest

    @property
    def symbols(self) -> "GuestSymbols":
        """These are the names and types of the guest; raises as :attr:`guest` does."""
        return self.guest.symbols

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
            PolicyDenied: the session has not the grant ``read-registers``, or not so often.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        self._control.require(Grant.READ_REGISTERS, "read registers")
        return await self._read_registers()

    async def _read_registers(self) -> tuple[Registers, ...]:
        self._vcpus = await commands.registers(self._monitor)
        return self._vcpus

    async def system_registers(self) -> View:
        """This reads the registers of all vCPUs by the gdbstub, which has all of them.

        The guest stands still for some milliseconds, which the view's provenance tells; within
        :meth:`paused` they are of that moment. On aarch64 it is the only way to the system registers,
        such as ``TTBR1_EL1``.

        Raises:
            PolicyDenied: the session has not the grants ``read-registers`` and ``pause``.
            PauseError: the guest cannot be stopped safely.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            UsageError: QEMU starts no gdbstub.
            StaleView: somebody else has let the guest run in the meantime.
            MachineGone, GdbstubTimeout, GdbstubProtocolError: QEMU did not answer.
        """
        self._control.require(Grant.READ_REGISTERS, "read registers by the gdbstub")
        live = self.view
        async with self._control.paused("read registers by the gdbstub") as pause:
            vcpus = await self._control.stub.do(lambda client: client.registers.vcpus())
            if self._stills.view is not None:
                return self._still(pause, vcpus)
        provenance = Provenance(Taken.CAPTURED, pause.at, pause.lasted_s, live.provenance.epoch)
        return replace(live, vcpus=vcpus, provenance=provenance)

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
        status, version, name = await ask_facts(self._monitor)
        return MachineFacts(
            address=self.address,
            name=name,
            qemu_version=str(version),
            run_state=status.status,
            vcpus=len(self._vcpus),
            ram_size=sum(ram.size for ram in self._opened.memory.ranges),
            epoch=self.epoch,
            memory=self.memory_ladder,
            stood_still_s=self.stood_still_s,
        )

    async def refresh(self) -> None:
        """This looks again which system runs, as after a reset; :attr:`guest` then tells.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        await self._read_registers()
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
        try:
            await self._recognition.look(self._whole_view, self._read_registers, self._ask_stub)
        finally:
            if self._opened.remote is not None:
                await self._opened.remote.let_go()

    def _whole_view(self) -> View:
        """This is what qvmi itself works out by which system runs, whoever may see how much of it."""
        return self._view_of(self._vcpus, self._opened.memory)

    async def _ask_stub(self) -> None:
        """This reads the registers by the gdbstub, if that was named and may stop the guest."""
        may = self.policy.allows(Grant.PAUSE) and self.policy.allows(Grant.READ_REGISTERS)
        if self._control.stub_named and may:
            view = await self.system_registers()
            self._vcpus, self._stub_pause_s = view.vcpus, view.provenance.pause_s

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[View]:
        """This keeps the guest from running for as long as the block lasts.

        Within it :attr:`guest` answers for the moment of the pause, and says so. Blocks may nest. A
        guest that its owner had paused stays paused afterwards; one that ran goes on to run,
        whatever happens to this process.

        Raises:
            PolicyDenied: the session has not the grant ``pause``, or not so often; at its end: the
                block has lasted longer than is granted, and was cancelled.
            PauseError: the guest cannot be stopped safely.
            StaleView: somebody else has let it run in the meantime; raised at the block's end.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        async with self._control.paused("pause the guest") as pause:
            vcpus = self._allowed(await commands.registers(self._monitor))
            with self._stills.at(self._still(pause, vcpus), self._recognition.guest) as view:
                yield view

    async def query(
        self,
        look: Callable[[LinuxGuest], Result],
        *,
        timeout_s: float = QUERY_TIMEOUT_S,
        still: bool = True,
    ) -> Result:
        """This looks at the guest in a thread, whichever way its memory is read.

        A cancel or the deadline ends the look at its next read. A guest whose memory is read by the
        gdbstub stands still for the look, and a listing says for how long.

        Args:
            look: looks at the guest and returns what it found; called in another thread.
            timeout_s: how long it may take.
            still: False for what computes for long: the guest then stands still for each read alone.

        Raises:
            QueryTimeout: it took longer.
            UnknownGuest, StaleView: as :attr:`guest`.
            QvmiError: whatever the look raises, or QEMU did not answer.
        """
        guest = self._recognised
        return await self.query_view(
            lambda view: look(guest.over(view)), timeout_s=timeout_s, still=still
        )

    async def query_view(
        self,
        look: Callable[[View], Result],
        *,
        timeout_s: float = QUERY_TIMEOUT_S,
        still: bool = True,
    ) -> Result:
        """This is :meth:`query` for a look that asks for no system that was recognised."""
        remote = self._opened.remote
        query = Query(self._run_control, self._still, remote, timeout_s=timeout_s, still=still)
        return await query.of(look, self.view, self._stills.view)

    async def capture(self, walk: Callable[[LinuxGuest], Result]) -> Result:
        """This does a walk that sees the guest at one moment, with the shortest pause that can be had.

        Args:
            walk: looks at the guest and returns what it found. It is called several times, also
                on the running guest to learn what it reads, and in other threads.

        Raises:
            PolicyDenied: the session has not the grant ``pause``.
            PauseError: the walk takes too long to stop the guest for it, and reads something
                else each time; :meth:`paused` stops it for as long as you want.
            UnknownGuest, StaleView: as :attr:`guest`.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        guest = self._recognised
        self._control.require_unbounded_pause("capture the guest")
        return await Capture(self._run_control, guest, self._still).of(walk)

    async def _address_of(self, symbol: str) -> Va:
        return await self.query(lambda guest: address(guest.kernel.symbols, symbol))

    async def dump(self, path: Path, *, live: bool = False) -> Dump:
        """This writes the guest's memory to an ELF core file, which debuggers and Volatility open.

        The guest stands still meanwhile, some 0.2 s for each GiB it uses. The file has holes where
        the guest has never written, and replaces what was there only when it is whole.

        Args:
            path: of the file.
            live: lets the guest run; the dump is then a mixture of many moments. A guest whose memory
                is read by the gdbstub stands still all the same.

        Raises:
            PolicyDenied: the session has not the grant ``pause``, and the dump is not live.
            UsageError: the file cannot be written, or the disk has not room for it.
            PauseError: the guest cannot be stopped safely.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        if not live:
            self._control.require_unbounded_pause("dump the guest as of one moment")
        self.policy.require_all(Grant.READ_MEMORY, "dump the guest")
        file = DumpFile(path, self.memory)
        try:
            note = await self.query_view(partial(_vmcoreinfo, self._recognition.guest))
            stopped = self._opened.remote is not None and self._opened.remote.stops_guest
            live = live and not stopped
            return await file.take(self._monitor, self._run_control, note, live=live)
        finally:
            file.close()

    def _still(self, pause: Pause, vcpus: tuple[Registers, ...] = ()) -> View:
        """This is a look at the guest while it stands still."""
        live = self.view

        def require_current() -> None:
            pause.require()
            live.require_current()

        provenance = Provenance(Taken.PAUSED, pause.at, epoch=live.provenance.epoch)
        return View(vcpus, self.memory, provenance, require_current, lambda: pause.lasted_s)

    async def close(self) -> None:
        """This ends the session; the guest goes on as it was. What was learned is kept."""
        self._recognition.remember()
        await self._control.end_work()
        self._opened.memory.close()  # first, so that no reader in another thread stops the guest again
        if self._opened.remote is not None:
            await self._opened.remote.let_go()
        left_to_guardian = await self._control.close()
        await self._monitor.close(keep_open=left_to_guardian)

    def _require_epoch(self, epoch: int) -> None:
        """This raises unless the machine is still there, and was not reset since."""
        if self._monitor.ended:
            raise MachineGone("looking at the guest")
        if self.epoch != epoch:
            raise StaleView("the machine was reset since it was looked at: refresh()")


def _vmcoreinfo(guest: LinuxGuest | None, view: View) -> bytes:
    """This is the note of the kernel for crash dumps, empty where no kernel was recognised."""
    return b"" if guest is None else guest.over(view).vmcoreinfo()
