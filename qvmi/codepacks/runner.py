"""What runs a codepack at its interval, confirms what it finds, and publishes what is confirmed."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.bus import throttle
from qvmi.bus.bus import Publisher
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.confirmation import Confirmation, Confirmed
from qvmi.codepacks.look import Look, in_words, look
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.status import STATUS, Sight, Status, last_will
from qvmi.codepacks.thread_call import call_in_thread
from qvmi.errors import (
    BadMessage,
    MachineGone,
    NotDirect,
    QueryTimeout,
    QvmiError,
    StaleView,
    UnknownGuest,
)
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import GuestOS
from qvmi.view import Provenance, Taken

__all__ = ["LOOK_DEADLINE_S", "InspectedMachine", "Runner"]

LOOK_DEADLINE_S: Final = 5.0
"""Longest look. The first one of a codepack may decode tables for a second on a loaded machine."""

WITHDRAW_GRACE_S: Final = 1.0
"""When a runner is cancelled in mid-look, how long the codepack has to leave the guest's memory."""

ASK_INTERVAL_S: Final = 1.0
"""Between two questions to the machine: whether it still is (its memory can be read after its end),
and which system runs there where none is recognised, which may take half a second to find out."""

MAX_WAITING: Final = 1024
"""Messages kept while there is no bus to take them; the oldest go first."""

MAX_SENT_KEPT: Final = 256
"""Messages kept to be sent again over the next bus: a broker that dies may not have passed them on."""

_RESET: Final = "the guest was reset, or its kernel replaced"

_log: Final = logging.getLogger(__name__)


Found = TypeVar("Found")


class InspectedMachine(Protocol):
    """This is what a runner needs of a machine."""

    @property
    def guest(self) -> GuestOS:
        """This is the guest as of now; what it raises is reported, but NotDirect."""
        ...

    async def query(self, look: Callable[[GuestOS], Found], *, timeout_s: float) -> Found:
        """This looks at a guest whose memory is not direct; QueryTimeout if that takes too long."""
        ...

    @property
    def memory(self) -> PhysicalMemory:
        """This is the guest's memory."""
        ...

    @property
    def epoch(self) -> int:
        """This counts resets and kernel changes."""
        ...

    async def refresh(self) -> None:
        """This looks again which system runs; MachineGone if there is no machine any more."""
        ...

    async def run_state(self) -> object:
        """This asks the machine how it is; MachineGone if there is none any more."""
        ...


def _none() -> tuple[str, ...]:
    """This says that there is nothing to beware of."""
    return ()


class Runner:
    """This runs one codepack against one machine.

    Whatever the codepack raises, returns, or does not return is published as a status; the runner
    goes on. It ends when the machine is gone, and raises only what the bus does.

    Args:
        codepack: what to run.
        machine: what to run it against.
        vm: the machine's name on the bus.
        look_deadline_s: longest look; one that takes longer is reported and left to itself, and
            no other is begun until it ends.
        caveats: tells what whoever reads an alert must know of how it was watched.
        max_failures: looks in a row in which the codepack itself may fail; after one more it is given
            up. None for any number.

    Attributes:
        given_up: why it is; empty while it is not.
    """

    def __init__(
        self,
        codepack: Codepack,
        machine: InspectedMachine,
        *,
        vm: str,
        look_deadline_s: float = LOOK_DEADLINE_S,
        caveats: Callable[[], tuple[str, ...]] = _none,
        max_failures: int | None = None,
    ) -> None:
        self.given_up = ""
        self._caveats = caveats
        self._max_failures = max_failures
        self._failures = 0
        self._codepack = codepack
        self._machine = machine
        self._vm = vm
        self._look_deadline_s = look_deadline_s
        self._confirmation = Confirmation()
        self._epoch = machine.epoch
        self._looking: asyncio.Future[Look] | None = None
        self._is_inspecting = False
        self._reported: tuple[Sight, str, int] | None = None
        self._next_life_check = 0.0
        self._next_refresh = 0.0
        self._rounds = 0
        self._lost = 0
        self._backlog = 0
        self._waiting: deque[Message] = deque()
        self._sent: deque[Message] = deque(maxlen=MAX_SENT_KEPT)

    @property
    def will(self) -> Message:
        """This is what is to be published when nobody runs this any more."""
        return last_will(self._vm, self._codepack.name)

    async def run(self, bus: Publisher) -> None:
        """This looks and publishes until the machine is gone, or the codepack is given up.

        After a BusError it can be called again with another bus: it knows what it has found, and
        publishes again, under the same ids, what it published last.
        """
        if self._sent:
            self._reported = None  # whoever was told that it is gone must learn that it is back
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self._backlog = len(self._waiting)
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._codepack.interval_s
            gone = bool(self.given_up) or await self._round()
            await self._flush(bus)
            if gone or self.given_up:
                return
            await asyncio.sleep(due - loop.time())

    async def _round(self) -> bool:
        """This looks once, queues what is to be published, and tells whether the machine is gone."""
        self._rounds += 1
        try:
            result = await self._look()
        except MachineGone as error:
            self._report(_blind(error, sight=Sight.ENDED))
            return True
        if self._machine.epoch != self._epoch:
            self._epoch = self._machine.epoch
            self._queue_alerts(
                self._confirmation.forget(), result.provenance, cleared_because=_RESET
            )
            result = replace(result, findings=(), sight=Sight.BLIND, problem=_RESET)
        self._report(self._counted(self._judge(result)))
        return False

    def _counted(self, result: Look) -> Look:
        """This counts failures in a row, and gives the codepack up after too many."""
        if result.sight is Sight.LATE:  # nobody knows yet how that look ends
            return result
        self._failures = self._failures + 1 if result.sight is Sight.FAILED else 0
        if self._max_failures is None or self._failures <= self._max_failures:
            return result
        self.given_up = f"given up, as it failed {self._failures} times in a row: {result.problem}"
        return replace(result, problem=self.given_up)

    async def _look(self) -> Look:
        """This looks once; MachineGone only if the machine itself says so."""
        await self._require_machine()
        if self._looking is not None and not self._looking.done():
            return self._late()
        try:
            guest = ObservedGuest(self._machine.guest, self._codepack.name)
            memory = self._machine.memory
        except NotDirect:
            return await self._look_by_query()
        except QvmiError as error:
            await self._recover(error)
            return _blind(error)
        result = await self._look_in_thread(guest, memory)
        if result.error is not None:
            await self._recover(result.error)
        return result

    async def _look_in_thread(self, guest: ObservedGuest, memory: PhysicalMemory) -> Look:
        """This looks in a thread, so that a codepack that hangs stops nobody else."""
        looking = self._looking = call_in_thread(
            lambda: look(self._codepack, guest, memory), name=f"qvmi-{self._codepack.name}"
        )
        try:
            await asyncio.wait({looking}, timeout=self._look_deadline_s)
        except asyncio.CancelledError:
            guest.withdraw()
            await asyncio.wait({looking}, timeout=WITHDRAW_GRACE_S)
            raise
        if looking.done():
            return looking.result()
        guest.withdraw()
        return self._late()

    async def _look_by_query(self) -> Look:
        """This leaves the thread to the machine, which alone can wait for its memory."""
        if self._is_inspecting:
            return self._late()

        def inspect(guest: GuestOS) -> Look:
            self._is_inspecting = True
            try:
                observed = ObservedGuest(guest, self._codepack.name)
                return look(self._codepack, observed, self._machine.memory)
            finally:
                self._is_inspecting = False

        try:
            result = await self._machine.query(inspect, timeout_s=self._look_deadline_s)
        except QueryTimeout:
            return self._late()
        except QvmiError as error:
            result = _blind(error)
        if result.error is not None:
            await self._recover(result.error)
        return result

    async def _require_machine(self) -> None:
        """This raises MachineGone if the machine is; one that does not answer may yet be read."""
        now = time.monotonic()
        if now >= self._next_life_check:
            self._next_life_check = now + ASK_INTERVAL_S
            await self._ask(self._machine.run_state())

    async def _recover(self, error: BaseException) -> None:
        """This lets the machine look again where that may help, and end if it is gone."""
        now = time.monotonic()
        if isinstance(error, StaleView | UnknownGuest | MachineGone) and now >= self._next_refresh:
            self._next_refresh = now + ASK_INTERVAL_S
            await self._ask(self._machine.refresh())

    async def _ask(self, question: Awaitable[object]) -> None:
        """This awaits something of the machine; that it is gone is the only answer that matters."""
        try:
            async with asyncio.timeout(self._look_deadline_s):
                await question
        except MachineGone:
            raise
        except (QvmiError, TimeoutError) as error:
            _log.debug("%s: %s", self._codepack.name, error)

    def _judge(self, result: Look) -> Look:
        """This confirms what was found, and notes what was too much."""
        complete = result.sight is Sight.FULL
        changes = self._confirmation.update(
            result.findings, complete=complete, at=result.provenance.at, clock=time.monotonic()
        )
        self._queue_alerts(changes.raised, result.provenance)
        self._queue_alerts(changes.cleared, result.provenance, cleared_because="no longer seen")
        if not changes.overflow:
            return result
        problem = f"{changes.overflow} findings more than can be followed; {result.problem}"
        return replace(result, sight=Sight.GAPS if complete else result.sight, problem=problem)

    def _queue_alerts(
        self, changed: Iterable[Confirmed], provenance: Provenance, *, cleared_because: str = ""
    ) -> None:
        for confirmed in changed:
            alert = Alert.of(
                confirmed,
                codepack=self._codepack.name,
                provenance=provenance,
                cleared_because=cleared_because,
                caveats=self._caveats(),
            )
            self._queue(alert.state, alert, provenance)

    def _report(self, result: Look) -> None:
        """This queues a status if it says anything new."""
        status = Status(
            sight=result.sight,
            problem=result.problem,
            gaps=result.gaps,
            gap_count=result.gap_count,
            rounds=self._rounds,
            lost=self._lost,
        )
        news = (status.sight, status.problem, status.lost)
        if news == self._reported:
            return
        self._reported = news
        if status.sight is Sight.FAILED:
            _log.warning("codepack %s failed", self._codepack.name, exc_info=result.error)
        self._queue(STATUS, status, result.provenance)

    def _queue(self, kind: str, body: Alert | Status, provenance: Provenance) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._lost += 1
        message = Message(
            vm=self._vm,
            codepack=self._codepack.name,
            kind=kind,
            time=time.time(),
            epoch=self._epoch,
            provenance=provenance,
            body=msgspec.to_builtins(body),
        )
        self._waiting.append(message)

    async def _flush(self, bus: Publisher) -> None:
        """This publishes what waits; what the bus does not take goes on waiting."""
        while self._waiting:
            message = self._waiting[0]
            try:
                await bus.publish(message, retain=message.kind == STATUS)
            except BadMessage:
                _log.exception("%s: a message that cannot be published", self._codepack.name)
                self._lost += 1
            else:
                self._sent.append(message)
            self._waiting.popleft()
            if self._backlog:  # what had to wait is no flood, and must not be taken for one
                self._backlog -= 1
                await asyncio.sleep(1 / (throttle.PATIENT_SHARE * throttle.MAX_PER_S))

    def _late(self) -> Look:
        problem = f"not finished after {self._look_deadline_s:g} s"
        return Look(Sight.LATE, Provenance(Taken.LIVE, time.time()), problem=problem)


def _blind(error: QvmiError, *, sight: Sight = Sight.BLIND) -> Look:
    provenance = Provenance(Taken.LIVE, time.time())
    return Look(sight, provenance, problem=in_words(error), error=error)
