"""What runs a codepack at its interval, confirms what it finds, and publishes what is confirmed."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from qvmi.bus.bus import Publisher
from qvmi.bus.message import Message
from qvmi.bus.requests import Request
from qvmi.codepacks.alert import GUARD_RAILS, Alert
from qvmi.codepacks.alert_budget import AlertBudget
from qvmi.codepacks.codepack import Codepack
from qvmi.codepacks.confirmation import Confirmation, Confirmed
from qvmi.codepacks.fellows import Fellows, next_due
from qvmi.codepacks.look import Look
from qvmi.codepacks.looker import LOOK_DEADLINE_S, InspectedMachine, Looker, blind
from qvmi.codepacks.outgoing import Outgoing
from qvmi.codepacks.questions import Questions
from qvmi.codepacks.standing_alerts import StandingAlerts
from qvmi.codepacks.status import STATUS, Sight, Status, last_will
from qvmi.codepacks.triggers import Triggers, triggers_of
from qvmi.codepacks.wake import Wake
from qvmi.errors import MachineGone, UsageError
from qvmi.policy import READ_ONLY, Policy
from qvmi.view import Provenance

__all__ = ["Runner"]

_TOO_MANY: Final = "findings are held back, as it has raised too many alerts in a short time"
_RESET: Final = "the guest was reset, or its kernel replaced"

_log: Final = logging.getLogger(__name__)


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
        kept: where alerts that stand are kept, so that another run does not raise them again; None
            for nowhere.
        budget: how many alerts it may raise; None for what is usual.
        fellows: what it has in common with other codepacks in this process; None where it is alone.
        triggers: what it looks for besides its interval; None for what the codepack itself names.
        max_failures: looks in a row in which the codepack itself may fail; after one more it is given
            up. None for any number.
        policy: what it may be shown beside memory.
        held_by: what holds it to its policy.

    Attributes:
        given_up: why it is; empty while it is not.
        triggers: what it looks for besides its interval.
        wake: has it look soon.
        questions: what it is asked over the bus.

    Raises:
        UsageError: where they are kept cannot be read.
    """

    def __init__(  # noqa: PLR0913 - all but three have a default
        self,
        codepack: Codepack,
        machine: InspectedMachine,
        *,
        vm: str,
        look_deadline_s: float = LOOK_DEADLINE_S,
        caveats: Callable[[], tuple[str, ...]] = _none,
        kept: StandingAlerts | None = None,
        budget: AlertBudget | None = None,
        fellows: Fellows | None = None,
        triggers: Triggers | None = None,
        max_failures: int | None = None,
        policy: Policy = READ_ONLY,
        held_by: str = GUARD_RAILS,
    ) -> None:
        self.given_up = ""
        self.triggers = triggers or triggers_of(codepack)
        self.wake = Wake()
        self.questions = Questions(self.wake)
        self._no_events = ""
        self._caveats, self._held_by = caveats, held_by
        self._max_failures = max_failures
        self._failures = 0
        self._codepack = codepack
        self._machine = machine
        self._vm = vm
        self._fellows = fellows or Fellows()
        self._looker = Looker(
            codepack,
            machine,
            deadline_s=look_deadline_s,
            shared=self._fellows.shared,
            policy=policy,
        )
        self._confirmation = Confirmation()
        self._kept = kept
        self._not_kept = ""
        if kept is not None:
            self._confirmation.remember(kept.load())
        self._inherited = self._saved = self._standing_keys()
        self._budget = budget or AlertBudget()
        self._suppressed = 0
        self._epoch = machine.epoch
        self._reported: tuple[object, ...] | None = None
        self._rounds, self._began = 0, 0.0
        self._outgoing = Outgoing()

    @property
    def name(self) -> str:
        """This is the codepack's."""
        return self._codepack.name

    @property
    def will(self) -> Message:
        """This is what is to be published when nobody runs this any more."""
        return last_will(self._vm, self._codepack.name)

    async def run(self, bus: Publisher) -> None:
        """This looks and publishes until the machine is gone, or the codepack is given up.

        After a BusError it can be called again with another bus: it knows what it has found, and
        publishes again, under the same ids, what it published last.
        """
        if self._outgoing.begin():
            self._reported = None  # whoever was told that it is gone must learn that it is back
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            gone = bool(self.given_up) or await self._round()
            await self._outgoing.flush(bus)
            await self._keep()
            if gone or self.given_up:
                return
            await self._next_look(due := next_due(due, self._codepack.interval_s, now=loop.time()))

    async def _next_look(self, due: float) -> None:
        """This waits until it is time, or somebody wants it.

        One that had to wait for its turn must not look again right behind that.
        """
        await self.wake.wait(
            max(due, self._began + self._codepack.interval_s / 2),
            not_before=self._began + self.triggers.min_gap_s,
        )

    async def _round(self) -> bool:
        """This looks once, queues what is to be published, and tells whether the machine is gone."""
        self._rounds += 1
        try:
            asking, result = await self._looked()
        except MachineGone as error:
            self._report(blind(error, sight=Sight.ENDED))
            return True
        if self._machine.epoch != self._epoch:
            self._epoch = self._machine.epoch
            self._queue_alerts(
                self._confirmation.forget(), result.provenance, cleared_because=_RESET
            )
            result = replace(result, findings=(), sight=Sight.BLIND, problem=_RESET)
        judged = self._counted(self._judge(result))
        self._report(judged)
        await self.questions.answer(asking, judged, self._standing_keys())
        return False

    async def _looked(self) -> tuple[Sequence[Request], Look]:
        """This looks once, when it is its turn; what it must wait for before that takes none.

        Who asked before that began is answered by this look, and nobody who asked later.
        """
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        asking = self.questions.take() if self._looker.waits else ()
        await self._looker.fetch()
        async with self._fellows.turns.turn():
            if not self._looker.waits:
                self._began = loop.time()
                asking = self.questions.take()
            return asking, await self._looker.look()

    def _counted(self, result: Look) -> Look:
        """This counts failures in a row, and gives the codepack up after too many."""
        if result.sight is Sight.LATE:  # nobody knows yet how that look ends
            return result
        self._failures = self._failures + 1 if result.sight is Sight.FAILED else 0
        if self._max_failures is None or self._failures <= self._max_failures:
            return result
        self.given_up = f"given up, as it failed {self._failures} times in a row: {result.problem}"
        return replace(result, problem=self.given_up)

    def _judge(self, result: Look) -> Look:
        """This confirms what was found, and notes what was too much."""
        complete = result.sight is Sight.FULL
        now = asyncio.get_running_loop().time()
        changes = self._confirmation.update(
            result.findings,
            complete=complete,
            at=result.provenance.at,
            clock=self._began,
            took_s=now - self._began,
            room=self._budget.room(now),
        )
        self._budget.spend(len(changes.raised))
        self._suppressed += changes.suppressed
        self._inherited &= self._standing_keys()
        self._queue_alerts(changes.raised, result.provenance)
        self._queue_alerts(changes.cleared, result.provenance, cleared_because="no longer seen")
        problems = [result.problem, self._not_kept, self._no_events]
        if changes.overflow:
            problems.insert(0, f"{changes.overflow} findings more than can be followed")
            result = replace(result, sight=Sight.GAPS if complete else result.sight)
        if changes.held_back:
            problems.append(_TOO_MANY)
        return replace(result, problem="; ".join(filter(None, problems)))

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
                held_by=self._held_by,
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
            lost=self._outgoing.lost,
            standing=len(self._inherited),
            suppressed=self._suppressed,
        )
        news = (status.sight, status.problem, status.lost, status.standing, status.suppressed)
        if news == self._reported:
            return
        self._reported = news
        if status.sight is Sight.FAILED:
            _log.warning("codepack %s failed", self._codepack.name, exc_info=result.error)
        self._queue(STATUS, status, result.provenance)

    def _queue(self, kind: str, body: Alert | Status, provenance: Provenance) -> None:
        message = Message(
            vm=self._vm,
            codepack=self._codepack.name,
            kind=kind,
            time=time.time(),
            epoch=self._epoch,
            provenance=provenance,
            body=msgspec.to_builtins(body),
        )
        self._outgoing.add(message)

    def note_events(self, problem: str) -> None:
        """This is told that events of the guest cannot be watched, and why; empty where they are."""
        self._no_events = (
            f"it looks at its interval alone, without events: {problem}" if problem else ""
        )

    async def _keep(self) -> None:
        """This saves which alerts stand, once all that was to be said of them is out."""
        keys = self._standing_keys()
        if self._kept is None or not self._outgoing.is_empty or keys == self._saved:
            return
        try:
            await asyncio.to_thread(self._kept.save, self._confirmation.standing)
        except UsageError as error:
            self._not_kept = f"alerts will be raised again by the next run: {error}"
        else:
            self._not_kept = ""
            self._saved = keys

    def _standing_keys(self) -> frozenset[str]:
        return frozenset(one.finding.key for one in self._confirmation.standing)
