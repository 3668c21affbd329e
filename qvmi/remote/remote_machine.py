"""A live guest seen from another process than the one that holds QEMU's sockets.

Its memory is mapped here. What only QEMU can tell or do, the registers, pauses and breakpoints, the
manager is asked for, which decides by its policy. Pauses and breakpoints are leases: they end by
themselves when this process does, or stands still.
"""

import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from qvmi.addr import Va
from qvmi.arch.registers import Registers
from qvmi.errors import MachineGone, PolicyDenied, StaleView, UsageError
from qvmi.machine.capture import Capture
from qvmi.machine.events.event_stream import EventStream
from qvmi.machine.facts import MachineFacts
from qvmi.machine.guest_tools import GuestTools
from qvmi.machine.holding.pause import Pause
from qvmi.machine.query import QUERY_TIMEOUT_S, Query
from qvmi.machine.recognition import Recognition
from qvmi.machine.ways.still_looks import StillLooks
from qvmi.memory.address_space import AddressSpace
from qvmi.memory.physical import PhysicalMemory
from qvmi.qmp.commands import RunState
from qvmi.remote.asking import Ask, Asking
from qvmi.remote.leased_breakpoint import leased_breakpoint
from qvmi.remote.leased_pause import LeasedPauses
from qvmi.remote.messages import (
    AskFacts,
    AskRunState,
    AskSystem,
    FactsTold,
    MachineState,
    ReadRegisters,
    RegistersTold,
    RunStateTold,
    SetBreakpoint,
    SystemRegistersTold,
)
from qvmi.remote.remote_events import RemoteEvents
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.selection import Choices
from qvmi.symbols.layout import address
from qvmi.view import Provenance, Taken, View

if TYPE_CHECKING:
    from qvmi.gdbstub.packets import BreakpointKind
    from qvmi.machine.holding.breakpoints import Condition, HitStream
    from qvmi.semantics.linux.kernel.guest_symbols import GuestSymbols

__all__ = ["RemoteMachine"]

Result = TypeVar("Result")


class RemoteMachine(GuestTools):
    """This is a running QEMU that another process holds; it answers as `qvmi.machine.machine.Machine`.

    Every implementation of both passes ``tests/contract/test_machine.py``. What differs: the manager
    decides what this may do, a condition of a breakpoint is asked after the guest has gone on, and
    whatever is asked raises BusError where the manager does not answer.

    Args:
        ask: carries questions to the manager.
        memory: the guest's memory, which this owns from now on.
        choices: what is used to understand the guest.
        address: how the manager has attached to it.
        reads_registers: whether this codepack may; else it asks for what says which system runs alone.
    """

    def __init__(
        self,
        ask: Ask,
        memory: PhysicalMemory,
        choices: Choices,
        *,
        address: str,
        reads_registers: bool = True,
    ) -> None:
        self.address = address
        self._reads_registers = reads_registers
        self.memory = memory
        self._asking = Asking(ask, self.note)
        self._recognition = Recognition(choices)
        self._pauses = LeasedPauses(self._asking)
        self._stills = StillLooks()
        self._state = MachineState(0)
        self._events = RemoteEvents(self._recognition.require, self.refresh, lambda: self.epoch)
        self._vcpus: tuple[Registers, ...] = ()

    @property
    def epoch(self) -> int:
        """This counts how often the machine was reset since the manager attached."""
        return self._state.epoch

    @property
    def is_direct(self) -> bool:
        """This tells whether the memory answers at once: it is mapped, so it does."""
        return True

    @property
    def stood_still_s(self) -> float:
        """This is for how long the guest has stood still by what was asked here, in seconds."""
        return self._pauses.stood_still_s

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
        """This is the address space of a process of the guest; raises as :attr:`guest` does."""
        return self.guest.user_space(process)

    def note(self, state: MachineState) -> None:
        """This takes in what the manager says of the machine, with an answer or by itself."""
        if state.epoch >= self._state.epoch:  # messages may overtake each other
            gone = state.gone or self._state.gone
            self._state = MachineState(state.epoch, gone=gone)

    async def registers(self) -> tuple[Registers, ...]:
        """This reads the registers of all vCPUs without stopping the guest.

        Raises:
            PolicyDenied: this codepack may not.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        told = await self._asking.ask(ReadRegisters(), RegistersTold)
        self._vcpus = told.vcpus.vcpus
        return self._vcpus

    async def system_registers(self) -> View:
        """This reads the registers of all vCPUs by the gdbstub; see `Machine.system_registers`."""
        told = await self._asking.ask(ReadRegisters(system=True), SystemRegistersTold)
        live = self.view
        if self._stills.view is not None:
            return replace(self._stills.view, vcpus=told.vcpus.vcpus)
        return replace(live, vcpus=told.vcpus.vcpus, provenance=told.provenance)

    async def run_state(self) -> RunState:
        """This asks whether the vCPUs run; it is also how to learn that QEMU is gone."""
        return (await self._asking.ask(AskRunState(), RunStateTold)).state

    async def facts(self) -> MachineFacts:
        """This asks for what QEMU says of the machine."""
        facts = (await self._asking.ask(AskFacts(), FactsTold)).facts
        return replace(facts, stood_still_s=self.stood_still_s)

    async def refresh(self) -> None:
        """This looks again which system runs, as after a reset; :attr:`guest` then tells."""
        if self._reads_registers:
            await self.registers()
            await self._recognition.look(lambda: self.view, self.registers, self._ask_stub)
            return
        system = (await self._asking.ask(AskSystem(), RegistersTold)).vcpus.vcpus
        await self._recognition.look(lambda: replace(self.view, vcpus=system), _nothing, _nothing)
        if self._recognition.guest is not None:  # what stood for registers are none
            self._recognition.guest = self._recognition.guest.over(self.view)

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[View]:
        """This keeps the guest from running for as long as the block lasts; see `Machine.paused`.

        The pause is renewed meanwhile by this process's event loop. Where that stands still for some
        seconds, or the process ends, the manager lets the guest run, and the view is stale.
        """
        async with self._pauses.paused() as pause:
            view = self._still(pause, self._pauses.vcpus)
            with self._stills.at(view, self._recognition.guest):
                yield view

    async def query(
        self,
        look: Callable[[LinuxGuest], Result],
        *,
        timeout_s: float = QUERY_TIMEOUT_S,
        still: bool = True,
    ) -> Result:
        """This looks at the guest in a thread; see `Machine.query`."""
        guest = self.guest
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
        query = Query(self._pauses, self._still, None, timeout_s=timeout_s, still=still)
        return await query.of(look, self.view, self._stills.view)

    async def capture(self, walk: Callable[[LinuxGuest], Result]) -> Result:
        """This does a walk that sees the guest at one moment; see `Machine.capture`."""
        return await Capture(self._pauses, self.guest, self._still).of(walk)

    @asynccontextmanager
    async def breakpoints(
        self,
        place: str | Va,
        *,
        condition: "Condition | None" = None,
        kind: "BreakpointKind | None" = None,
        size: int = 1,
    ) -> "AsyncIterator[HitStream]":
        """This iterates the hits of a breakpoint or watchpoint; see `Machine.breakpoints`."""
        name = place if isinstance(place, str) else f"{place:#x}"
        if isinstance(place, str):
            va = await self.query(lambda guest: address(guest.kernel.symbols, name))
        else:
            va = place
        question = SetBreakpoint(name, va, None if kind is None else kind.value, size)
        async with leased_breakpoint(self._asking, question, condition) as hits:
            yield hits

    @asynccontextmanager
    async def events(self, kinds: Collection[str] | None = None) -> AsyncIterator[EventStream]:
        """This iterates what happens in the guest while the block lasts; see `Machine.events`.

        A thread of this process looks for it, with at most a tenth of a core. The manager is asked
        for nothing, and the policy for no more than the memory that this was handed.
        """
        _ = self.guest  # which may be stale
        async with self._events.watched(kinds) as stream:
            yield stream

    def exact_events(
        self, kinds: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """This is what `Machine.exact_events` is for whoever holds QEMU's sockets.

        Raises:
            UsageError: always; it names the ways that there are here.
        """
        del kinds
        raise UsageError(
            "exact events are for whoever holds QEMU's sockets, as each of them stops the guest: use"
            " events() here, or breakpoints() at a function of the kernel where the policy grants them"
        )

    async def close(self) -> None:
        """This lets go of the memory; what was learned of the guest is kept where that may be."""
        await self._events.close()
        self._recognition.remember()
        self.memory.close()

    @property
    def _recognised(self) -> LinuxGuest:
        return self.guest

    async def _ask_stub(self) -> None:
        """This reads what only the gdbstub tells, if this may; what runs is not recognised otherwise."""
        with suppress(PolicyDenied):
            self._vcpus = (await self.system_registers()).vcpus

    def _still(self, pause: Pause, vcpus: tuple[Registers, ...] = ()) -> View:
        """This is a look at the guest while it stands still."""
        live = self.view

        def require_current() -> None:
            pause.require()
            live.require_current()

        provenance = Provenance(Taken.PAUSED, pause.at, epoch=live.provenance.epoch)
        return View(vcpus, self.memory, provenance, require_current, lambda: pause.lasted_s)

    def _require_epoch(self, epoch: int) -> None:
        """This raises unless the machine is still there, and was not reset since."""
        if self._state.gone:
            raise MachineGone("looking at the guest")
        if self.epoch != epoch:
            raise StaleView("the machine was reset since it was looked at: refresh()")


async def _nothing() -> None:
    """This asks for nothing further: there is nothing that this codepack would be told."""
