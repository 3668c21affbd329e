"""One debugger's session with the RSP gateway, from its first question until it lets go.

Whoever only connects stops nothing: the guest stands still from the first question on that its registers
or memory have to answer.
"""

import asyncio
import logging
from contextlib import suppress
from typing import Final

from qvmi.addr import Va
from qvmi.audit import LOGGER
from qvmi.errors import GdbstubRequestFailed, GuestRunning, PolicyDenied, QvmiError
from qvmi.gdbstub.client import Breakpoint
from qvmi.gdbstub.packets import ANY_THREAD, Exited, StopReply, ThreadId
from qvmi.gdbstub.rsp import frame
from qvmi.manager.gateways.doorway import Visitor
from qvmi.manager.gateways.guest_memory import GuestMemory
from qvmi.manager.gateways.judged_memory import JudgedMemory
from qvmi.manager.gateways.outlet import Outlet
from qvmi.manager.gateways.rsp_dialect import Dialect, in_words
from qvmi.manager.gateways.rsp_rules import (
    Ask,
    Begin,
    Break,
    Current,
    Introduce,
    Leave,
    List,
    Locate,
    Read,
    Refuse,
    Run,
    Say,
    Select,
    Verdict,
    WhyStopped,
    Write,
    console,
    judge,
)
from qvmi.manager.gateways.shared_stub import Mode, SharedStub
from qvmi.manager.gateways.standstill import Standstill
from qvmi.policy import AddressRange, Grant, PolicyGate, Space

__all__ = ["DebugSession"]

_TRAP: Final = 5
_INTERRUPTED: Final = 2
_OK: Final = b"OK"
_NOT_GRANTED: Final = b"E01"
_FAILED: Final = b"E05"  # EIO
_FAULT: Final = b"E14"  # as QEMU answers
_BUSY: Final = b"E16"
_INVALID: Final = b"E22"
_SHOWN: Final = 4096  # bytes of registers in the audit log; one packet has no more
_STOPS_GUEST: Final = "stop the guest for a debugger"
_CANNOT_BE_HAD: Final = "the guest cannot be had now; the gateway says why where it was started"
_NAMED: Final = 40  # bytes of a packet, in refusals
_REGISTERS: Final = frozenset(b"GP")

_log: Final = logging.getLogger(__name__)
_audit: Final = logging.getLogger(LOGGER)


class DebugSession:
    """This answers one debugger.

    Args:
        visitor: who it is.
        gate: decides what it may do.
        standstill: who keeps the guest from running.
        stub: the gdbstub that all share.
        memory: tells what is memory.
        outlet: what is said to it.

    Attributes:
        mode: what it believes of the guest.
        step: the vCPU that it lets do one instruction, and whether the others run meanwhile.
        refusals: how often it was refused something.
        parting: it was told last words, and is to hang up.
    """

    def __init__(
        self,
        visitor: Visitor,
        gate: PolicyGate,
        *,
        standstill: Standstill,
        stub: SharedStub,
        memory: GuestMemory,
        outlet: Outlet,
    ) -> None:
        self.mode = Mode.AWAY
        self.step: tuple[ThreadId, bool] = (ANY_THREAD, True)
        self.refusals = 0
        self.parting = False
        self._visitor = visitor
        self._gate = gate
        self._standstill = standstill
        self._stub = stub
        self._guest_memory = memory
        self._memory = JudgedMemory(gate, stub=stub, memory=memory, refused=self._refused)
        self._outlet = outlet
        self._dialect = Dialect()
        self._chosen = ANY_THREAD

    def __str__(self) -> str:
        return str(self._visitor)

    async def packet(self, body: bytes) -> bool:
        """This does what a packet asks for; False where the debugger says nothing more."""
        grant, verdict = judge(body)
        if isinstance(verdict, Leave):
            await self.end()
            if verdict.answered:
                self._say(_OK)
            return verdict.answered
        try:
            answer = await self._answered(body, grant, verdict)
        except QvmiError as error:
            answer = self._failure(error)
            if isinstance(verdict, Begin | WhyStopped):
                # gdb gives up on the one, and waits behind the other until it is hung up on.
                denied = isinstance(error, PolicyDenied)
                self._say(in_words(str(error) if denied else _CANNOT_BE_HAD))
                self.parting = True
                return False
        if answer is not None:
            self._say(answer)
        return True

    async def interrupt(self) -> None:
        """This stops the guest for a debugger that waits for that."""
        if self.mode in {Mode.RUNS, Mode.STEPS}:
            await self._standstill.hold(self)
            if self.mode in {Mode.RUNS, Mode.STEPS}:
                self.stopped(StopReply(_INTERRUPTED, self._stub.current))

    def stopped(self, stop: StopReply | Exited) -> None:
        """This is told that the guest stands still for this debugger."""
        if self.mode in {Mode.RUNS, Mode.STEPS}:
            self.mode = Mode.HOLDS
            self._standstill.join(self)
            if isinstance(stop, StopReply) and stop.thread is not None:
                self._chosen = stop.thread  # gdb takes it as chosen, as it is in QEMU's stub
            self._say(self._dialect.stop(stop))

    async def end(self) -> None:
        """This takes the debugger's breakpoints away, and lets go of the guest."""
        self._memory.physical = False
        if self.mode is Mode.AWAY:
            return
        try:
            with suppress(QvmiError):  # a QEMU that has gone, or is frozen, is left all the same
                await self._standstill.hold(self)
            await self._stub.leave(self)
        finally:
            self.mode = Mode.AWAY
            self._chosen = ANY_THREAD
            await self._standstill.release(self)
        _audit.info("%s: lets go of the guest", self._visitor)

    # ---------------------------------------------------------------------------------- answers

    def _say(self, body: bytes) -> None:
        self._outlet.say(frame(body))

    async def _answered(self, body: bytes, grant: Grant | None, verdict: Verdict) -> bytes | None:
        """This is what is answered; None where that comes when the guest stops."""
        if isinstance(verdict, Begin):
            await self._require_begin()
            return b""
        if not _needs_guest(verdict):
            return self._at_once(verdict)
        if grant is not None:
            said = body[:_NAMED].decode("ascii", "backslashreplace")
            self._gate.policy.require(grant, f"{self._visitor}: {said!r}")
        if self.mode in {Mode.RUNS, Mode.STEPS}:
            return _BUSY
        if self.mode is Mode.AWAY:
            await self._begin()
        if isinstance(verdict, Run):
            return await self._run(verdict)
        if isinstance(verdict, Ask | Read | Write | Break):
            return await self._looked_or_changed(verdict)
        return self._told(verdict)

    def _failure(self, error: QvmiError) -> bytes:
        """This is the answer where something could not be done."""
        if isinstance(error, PolicyDenied):  # the audit log has it
            self.refusals += 1
            return _NOT_GRANTED
        if isinstance(error, GdbstubRequestFailed):
            return b"" if error.code is None else error.code.encode()
        if isinstance(error, GuestRunning):
            return _BUSY
        _log.warning("%s: %s", self._visitor, error)
        return _FAILED

    def _at_once(self, verdict: Verdict) -> bytes:
        """This is the answer to what needs no guest that stands still."""
        match verdict:
            case Say(answer, printed):
                if printed:
                    self._say(console(printed))
                return answer
            case Locate(physical):
                self._memory.physical = physical
                return _OK
            case Refuse(why, answers):
                for answer in answers[:-1]:
                    self._say(answer)
                return self._refused(why, answers[-1])
            case Introduce(multiprocess):
                self._dialect.multiprocess = multiprocess
                return self._dialect.features()
            case _:
                self._chosen = ANY_THREAD
                return _OK

    def _told(self, verdict: Verdict) -> bytes:
        """This is the answer to what is known while the guest stands still."""
        match verdict:
            case WhyStopped():
                self._chosen = self._stub.current
                return self._dialect.stop(StopReply(_TRAP, self._stub.current))
            case Current():
                return b"QC" + self._dialect.thread(self._stub.current)
            case List(first):
                return self._dialect.threads(self._stub.threads, first=first)
            case Select(thread, kept):
                return self._selected(thread, kept=kept)
            case _:
                return b""

    async def _looked_or_changed(self, verdict: Ask | Read | Write | Break) -> bytes:
        match verdict:
            case Ask(request):
                return await self._asked(request)
            case Read():
                return await self._memory.read(verdict, self._thread) or _FAULT
            case Write():
                # gdb asks with no bytes whether it may send bytes as they are.
                written = not verdict.data or await self._memory.write(verdict, self._thread)
                return _OK if written else _FAULT
            case Break():
                return await self._break(verdict)

    async def _asked(self, request: bytes) -> bytes:
        """This is the stub's answer to a question about registers, or to their being written."""
        shown = request[:_SHOWN].decode("ascii")
        if request[0] not in _REGISTERS:
            self._require(Grant.READ_REGISTERS, shown)
            return await self._stub.ask("ask", self._thread, request)
        self._require(Grant.WRITE, shown)
        async with self._guest_memory.alone:
            who = (self._visitor, self._thread.vcpu)
            _audit.info("%s: writes registers of vCPU %d: %s", *who, shown)
            try:
                return await self._stub.ask("ask", self._thread, request)
            finally:
                self._guest_memory.forget()  # the register may be that which the page tables hang from

    def _refused(self, why: str, answer: bytes = _NOT_GRANTED) -> bytes:
        self.refusals += 1
        _audit.warning("refused: %s: %s", self._visitor, why)
        return answer

    # -------------------------------------------------------------------------------- the guest

    @property
    def _thread(self) -> ThreadId:
        return self._chosen if self._chosen.thread > 0 else self._stub.current

    def _require(self, grant: Grant, action: str, place: AddressRange | None = None) -> None:
        now = asyncio.get_running_loop().time()
        self._gate.require(grant, action, now=now, place=place)

    async def _require_begin(self) -> None:
        """This raises PolicyDenied where the guest could not be shown as it is now; nothing is stopped."""
        policy = self._gate.policy
        policy.require(Grant.READ_REGISTERS, f"{self._visitor}: show the guest to a debugger")
        may_stop = self.mode is not Mode.AWAY or policy.allows(Grant.PAUSE)
        if not may_stop and await self._standstill.runs():
            policy.require(Grant.PAUSE, f"{self._visitor}: {_STOPS_GUEST}")

    async def _begin(self) -> None:
        """This begins a session, for which the guest stands still."""
        if await self._standstill.runs():
            self._require(Grant.PAUSE, _STOPS_GUEST)
            _audit.info("%s: stops the guest", self._visitor)
        await self._standstill.hold(self)
        try:
            await self._stub.enter(self)
        except QvmiError:
            await self._standstill.release(self)
            raise
        self.mode = Mode.HOLDS

    def _selected(self, thread: ThreadId, *, kept: bool) -> bytes:
        if not self._stub.has(thread):
            return _INVALID
        if kept:
            self._chosen = thread
        return _OK

    async def _run(self, verdict: Run) -> bytes | None:
        if (
            verdict.step is not None
            and verdict.step.thread > 0
            and not self._stub.has(verdict.step)
        ):
            return _INVALID
        if not self._standstill.ours:
            if not await self._standstill.runs():
                return self._refused("letting run a guest that its owner has stopped")
            await self._standstill.given_back()
        self.mode = Mode.RUNS
        if verdict.step is not None:
            thread = verdict.step if verdict.step.thread > 0 else self._thread
            self.step, self.mode = (thread, verdict.others), Mode.STEPS
        try:
            await self._standstill.release(self)
        except QvmiError:
            self.mode = Mode.HOLDS
            self._standstill.join(self)
            raise
        return None

    async def _break(self, verdict: Break) -> bytes:
        one = Breakpoint(Va(verdict.address), verdict.kind, verdict.size)
        what = f"{'insert' if verdict.insert else 'remove'} {one.kind.name} at {one.address:#x}"
        if verdict.insert:
            place = AddressRange(Space.VIRTUAL, one.address, max(one.size, 1))
            self._require(Grant.BREAKPOINT, what, place)
        _audit.info("%s: %s", self._visitor, what)
        await self._stub.change(self, one, insert=verdict.insert)
        return _OK


def _needs_guest(verdict: Verdict) -> bool:
    """This tells whether the guest has to stand still for an answer."""
    if isinstance(verdict, Select):
        return verdict.thread.thread > 0
    return not isinstance(verdict, Say | Refuse | Introduce | Begin | Locate)
