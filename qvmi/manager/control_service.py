"""What the manager does for codepacks in other processes: what they ask, if the policy lets them."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any, Final

import msgspec

from qvmi.audit import LOGGER
from qvmi.errors import (
    MachineGone,
    PolicyDenied,
    QvmiError,
    StaleView,
    UnknownGuest,
    UsageError,
)
from qvmi.gdbstub.packets import BreakpointKind
from qvmi.machine.holding.breakpoints import Hit, HitStream
from qvmi.machine.machine import Machine
from qvmi.manager.leases import Lease, Leases
from qvmi.manager.records import record
from qvmi.manager.system_registers import of_system
from qvmi.policy import AddressRange, Grant, Policy, PolicyGate, Space, refuse
from qvmi.remote.messages import (
    LEASE_S,
    MAX_HITS,
    Answer,
    AskFacts,
    AskRunState,
    AskSystem,
    BeginPause,
    EndLease,
    FactsTold,
    HitsTold,
    HitTold,
    KeepLease,
    LeaseTold,
    MachineState,
    PauseTold,
    Question,
    ReadRegisters,
    RegistersTold,
    RunStateTold,
    SetBreakpoint,
    SystemRegistersTold,
    TakeHits,
    VcpusTold,
    read_question,
)
from qvmi.remote.refusal import Refusal

__all__ = ["ControlService"]

_audit: Final = logging.getLogger(LOGGER)


class ControlService:
    """This answers the questions of codepacks about one machine.

    Args:
        machine: which this asks; its own policy must hold what any codepack's does.
        policies: what each codepack may do, by its name; others may do nothing.
        lease_s: how long a pause or a breakpoint holds unless it is renewed; of new ones it can be changed.
    """

    def __init__(
        self, machine: Machine, policies: Mapping[str, Policy], *, lease_s: float = LEASE_S
    ) -> None:
        self._machine = machine
        # Kept for as long as this is, so that a codepack that is started again has used up no less.
        self._gates = {name: _gate(name, policy) for name, policy in policies.items()}
        self._pausing: set[str] = set()
        self._ends: Counter[str] = Counter()
        self.lease_s = lease_s
        self._gone = False
        self._leases = Leases()
        self._streams: dict[str, HitStream] = {}
        self._handlers: dict[type, Callable[[str, Any], Awaitable[msgspec.Struct]]] = {
            ReadRegisters: self._read_registers,
            AskSystem: self._system,
            AskRunState: self._run_state,
            AskFacts: self._facts,
            BeginPause: self._begin_pause,
            SetBreakpoint: self._set_breakpoint,
            TakeHits: self._take_hits,
            KeepLease: self._keep_lease,
            EndLease: self._end_lease,
        }

    @property
    def state(self) -> MachineState:
        """This is what every view of the machine depends on."""
        return MachineState(self._machine.epoch, gone=self._gone)

    async def answer(self, codepack: str, body: dict[str, object]) -> dict[str, object]:
        """This answers a question; a refusal is an answer too, and a record in the audit log.

        Args:
            codepack: who asks, as the bus vouches for.
            body: of the request.
        """
        try:
            told = await self._told(codepack, read_question(body))
        except QvmiError as error:
            self._gone = self._gone or isinstance(error, MachineGone)
            if not isinstance(error, PolicyDenied):  # the policy has told the audit log of those
                record("codepack %s was refused: %s", codepack, error)
            answer = Answer(self.state, refusal=Refusal.of(error))
        else:
            answer = Answer(self.state, told=msgspec.to_builtins(told))
        form: dict[str, object] = msgspec.to_builtins(answer)
        return form

    def note_gone(self) -> None:
        """This is told that QEMU has ended."""
        self._gone = True

    async def forget(self, codepack: str) -> None:
        """This ends what a codepack holds or is about to be given, as its process is gone."""
        self._ends[codepack] += 1
        await self._leases.end_all(codepack)

    async def close(self) -> None:
        """This ends all that anybody holds."""
        await self._leases.end_all()

    async def _told(self, codepack: str, question: Question) -> msgspec.Struct:
        return await self._handlers[type(question)](codepack, question)

    def _gate_of(self, codepack: str) -> PolicyGate:
        """This is a codepack's gate; whom nobody knows may do nothing."""
        return self._gates.get(codepack) or _gate(codepack, Policy(frozenset()))

    async def _read_registers(self, codepack: str, question: ReadRegisters) -> msgspec.Struct:
        gate = self._gate_of(codepack)
        gate.require(Grant.READ_REGISTERS, "read registers", now=time.monotonic())
        if not question.system:
            return RegistersTold(VcpusTold.of(await self._machine.registers()))
        gate.require_unbounded_pause("read registers by the gdbstub", now=time.monotonic())
        view = await self._machine.system_registers()
        return SystemRegistersTold(VcpusTold.of(view.vcpus), view.provenance)

    async def _system(self, codepack: str, _: AskSystem) -> RegistersTold:
        self._gate_of(codepack).policy.require_all(
            Grant.READ_MEMORY, f"codepack {codepack}: {_SYSTEM}"
        )
        try:
            self._machine.guest  # noqa: B018 - it raises
        except (StaleView, UnknownGuest):
            await self._machine.refresh()
        vcpus = await self._machine.registers()
        root = None
        with suppress(StaleView, UnknownGuest):
            root = self._machine.guest.kernel.image.root
        return RegistersTold(VcpusTold.of(of_system(vcpus, root)))

    async def _run_state(self, codepack: str, _: AskRunState) -> RunStateTold:
        self._require_known(codepack)
        return RunStateTold(await self._machine.run_state())

    async def _facts(self, codepack: str, _: AskFacts) -> FactsTold:
        self._require_known(codepack)
        return FactsTold(await self._machine.facts())

    async def _begin_pause(self, codepack: str, _: BeginPause) -> PauseTold:
        gate = self._gate_of(codepack)
        gate.require(Grant.PAUSE, _PAUSE, now=time.monotonic())
        self._leases.require_room(codepack)
        longest_s = gate.longest_pause_s
        asked, ends = time.monotonic(), self._ends[codepack]
        async with AsyncExitStack() as stack:
            if longest_s is not None:
                stack.enter_context(self._only_pause(codepack, longest_s))
            view = await stack.enter_async_context(self._machine.paused())
            self._require_alive(codepack, ends)
            _audit.info("codepack %s pauses the guest", codepack)
            may_know = gate.policy.allows(Grant.READ_REGISTERS)
            told = VcpusTold.of(view.vcpus if may_know else ())
            # The guest has stood still meanwhile: for this codepack since it asked, or for another.
            held_s = min(view.paused_s(), time.monotonic() - asked)
            lease = Lease(
                codepack,
                "pause",
                stack.pop_all(),
                lasts_s=self.lease_s,
                longest_s=longest_s,
                held_s=held_s,
            )
            self._leases.begin(lease)
        ours = view.paused_s() > 0
        return PauseTold(lease.name, ours, view.provenance.at, told, lease.left_s)

    @contextmanager
    def _only_pause(self, codepack: str, longest_s: float) -> Iterator[None]:
        """This lets a codepack have one pause at a time: several in a row would be a longer one."""
        if codepack in self._pausing:
            reason = f"it pauses the guest already, and may for {longest_s:g} s at once"
            refuse(PolicyDenied(f"codepack {codepack}: {_PAUSE}", Grant.PAUSE.value, reason=reason))
        self._pausing.add(codepack)
        try:
            yield
        finally:
            self._pausing.discard(codepack)

    async def _set_breakpoint(self, codepack: str, question: SetBreakpoint) -> LeaseTold:
        place = AddressRange(Space.VIRTUAL, question.address, question.size)
        action = f"set a breakpoint at {question.place!r}"
        gate = self._gate_of(codepack)
        gate.require(Grant.BREAKPOINT, action, now=time.monotonic(), place=place)
        self._leases.require_room(codepack)
        kind = None if question.kind is None else _breakpoint_kind(question.kind)
        ends = self._ends[codepack]
        async with AsyncExitStack() as stack:
            stream = await stack.enter_async_context(
                self._machine.breakpoints(question.address, kind=kind, size=question.size)
            )
            self._require_alive(codepack, ends)
            _audit.info("codepack %s sets a breakpoint at %#x", codepack, question.address)
            hold = stack.pop_all()
            lease = self._leases.begin(Lease(codepack, "breakpoint", hold, lasts_s=self.lease_s))
        hold.callback(self._streams.pop, lease.name, None)
        self._streams[lease.name] = stream
        return LeaseTold(lease.name, lease.left_s)

    async def _take_hits(self, codepack: str, question: TakeHits) -> HitsTold:
        lease = self._leases.of(codepack, question.lease)
        lease.renew()
        stream = self._streams.get(lease.name)
        if stream is None:
            raise UsageError("this lease is one of a pause, which has no hits")
        hits = await _next_hits(stream, min(question.wait_s, self.lease_s / 2))
        lease.renew()
        return HitsTold(tuple(map(HitTold.of, hits)), stream.hits, stream.dropped)

    async def _keep_lease(self, codepack: str, question: KeepLease) -> LeaseTold:
        lease = self._leases.of(codepack, question.lease)
        lease.renew()
        return LeaseTold(lease.name, lease.left_s)

    async def _end_lease(self, codepack: str, question: EndLease) -> LeaseTold:
        lease = self._leases.of(codepack, question.lease)
        await self._leases.end(lease)
        return LeaseTold(lease.name, 0.0)

    def _require_alive(self, codepack: str, ends: int) -> None:
        """This raises StaleView where the process that asked has ended meanwhile: it holds nothing then."""
        if self._ends[codepack] != ends:
            raise StaleView("its process has ended since it asked")

    def _require_known(self, codepack: str) -> None:
        """This raises PolicyDenied for whom nobody knows; nothing of the guest is told by how it is."""
        if not self._gate_of(codepack).policy.grants:
            action = f"codepack {codepack}: ask how the machine is"
            refuse(PolicyDenied(action, Grant.READ_REGISTERS.value))


_PAUSE: Final = "pause the guest"
_SYSTEM: Final = "be told which system runs"


def _gate(codepack: str, policy: Policy) -> PolicyGate:
    return PolicyGate(f"codepack {codepack}", policy)


async def _next_hits(stream: HitStream, wait_s: float) -> list[Hit]:
    """These are the next hits; none where none comes in time, and an error once there are no more."""
    hits: list[Hit] = []
    try:
        async with asyncio.timeout(wait_s):
            hits.append(await anext(stream))
        while len(hits) < MAX_HITS and stream.waiting:
            hits.append(await anext(stream))
    except TimeoutError:
        pass
    except StopAsyncIteration:
        if not hits:
            raise UsageError("the breakpoint was removed") from None
    return hits


def _breakpoint_kind(number: int) -> BreakpointKind:
    try:
        return BreakpointKind(number)
    except ValueError as error:
        raise UsageError(f"there is no kind of breakpoint {number}") from error
