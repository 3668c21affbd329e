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
from qvmi.gdbstub.packets import (
    ANY_THREAD,
    Exited,
    StopReply,
    ThreadId,
    check_ok,
    hex_data,
    read_memory,
    write_memory,
)
from qvmi.gdbstub.rsp import frame
from qvmi.manager.gateways.doorway import Visitor
from qvmi.manager.gateways.guest_memory import GuestMemory
from qvmi.manager.gateways.outlet import Outlet
from qvmi.manager.gateways.rsp_dialect import Dialect
from qvmi.manager.gateways.rsp_rules import (
    Ask,
    Break,
    Current,
    Introduce,
    Leave,
    List,
    Read,
    Refuse,
    Run,
    Say,
    Select,
    Verdict,
    WhyStopped,
    Write,
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
_SHOWN: Final = 4096  # bytes of a write in the audit log; one packet has no more
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
        self._visitor = visitor
        self._gate = gate
        self._standstill = standstill
        self._stub = stub
        self._memory = memory
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
        except PolicyDenied:  # the audit log has it
            self.refusals += 1
            answer = _NOT_GRANTED
        except GdbstubRequestFailed as error:
            answer = b"" if error.code is None else error.code.encode()
        except GuestRunning:
            answer = _BUSY
        except QvmiError as error:
            _log.warning("%s: %s", self._visitor, error)
            answer = _FAILED
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

    def _at_once(self, verdict: Verdict) -> bytes:
        """This is the answer to what needs no guest that stands still."""
        match verdict:
            case Say(answer):
                return answer
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
                registers = Grant.WRITE if request[0] in _REGISTERS else Grant.READ_REGISTERS
                self._require(registers, request[:_SHOWN].decode("ascii"))
                if request[0] in _REGISTERS:
                    shown = request[:_SHOWN].decode("ascii")
                    _audit.info("%s: writes registers of vCPU %d: %s", *self._who(), shown)
                return await self._stub.ask("ask", self._thread, request)
            case Read():
                return await self._read(verdict)
            case Write():
                return await self._write(verdict)
            case Break():
                return await self._break(verdict)

    def _refused(self, why: str, answer: bytes = _NOT_GRANTED) -> bytes:
        self.refusals += 1
        _audit.warning("refused: %s: %s", self._visitor, why)
        return answer

    # -------------------------------------------------------------------------------- the guest

    @property
    def _thread(self) -> ThreadId:
        return self._chosen if self._chosen.thread > 0 else self._stub.current

    def _who(self) -> tuple[Visitor, int]:
        return self._visitor, self._thread.vcpu

    def _require(self, grant: Grant, action: str, place: AddressRange | None = None) -> None:
        now = asyncio.get_running_loop().time()
        self._gate.require(grant, action, now=now, place=place)

    async def _begin(self) -> None:
        """This begins a session, for which the guest stands still."""
        if await self._standstill.runs():
            self._require(Grant.PAUSE, "stop the guest for a debugger")
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

    async def _read(self, verdict: Read) -> bytes:
        if not await self._reachable(Grant.READ_MEMORY, verdict.address, verdict.size):
            return _FAULT
        request = read_memory(verdict.address, verdict.size)
        return await self._stub.ask("read memory", self._thread, request)

    async def _write(self, verdict: Write) -> bytes:
        size = len(verdict.data)
        if not size:  # gdb asks so whether it may send bytes as they are
            return _OK
        if not await self._reachable(Grant.WRITE, verdict.address, size):
            return _FAULT
        read = read_memory(verdict.address, size)
        old = hex_data(read, await self._stub.ask("read memory", self._thread, read), size)
        new = verdict.data
        told = (*self._who(), verdict.address, old.hex(), new.hex())
        _audit.info("%s: writes at vCPU %d's %#x: %s becomes %s", *told)
        request = write_memory(verdict.address, new)
        check_ok(request, await self._stub.ask("write memory", self._thread, request))
        return _OK

    async def _reachable(self, grant: Grant, address: int, size: int) -> bool:
        """This tells whether memory is there, and nothing else.

        Raises:
            PolicyDenied: it is neither among the virtual ranges that are granted nor, all of it, among
                the physical ones; or that is too much, or too often.
        """
        pieces = await self._memory.pieces(address, size, self._thread.vcpu)
        if pieces is None:
            return False
        asked = AddressRange(Space.VIRTUAL, address, size)
        places = [asked]
        if not self._gate.policy.limits_of(grant).covers(asked):
            places = [AddressRange(Space.PHYSICAL, one.start, one.size) for one in pieces]
        for place in places:
            self._require(grant, f"{grant.value} {asked}", place)
        for piece in pieces:
            if not await self._memory.is_memory(piece):
                self._refused(f"{asked}: a device, or nothing, and no memory")
                return False
        return True

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
    return not isinstance(verdict, Say | Refuse | Introduce)
