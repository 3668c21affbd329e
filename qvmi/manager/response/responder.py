"""The responder: it hears alerts, asks whom the playbook says, and runs playbooks one at a time."""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Never

import msgspec

from qvmi.bus.account import Account
from qvmi.bus.bus import Bus, Channel, first_of
from qvmi.bus.message import Message
from qvmi.bus.topic import ANY, REPLY, REQUEST, Topic, TopicFilter
from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.question import Answer, ConfirmQuestion, ask_for
from qvmi.errors import BadMessage, BusError, BusRefused, QvmiError
from qvmi.machine.completion import to_the_end
from qvmi.machine.machine import Machine
from qvmi.manager.records import record
from qvmi.manager.response.actor import Actor
from qvmi.manager.response.episodes import AlertKey, key_of
from qvmi.manager.response.journal import Journal, Run
from qvmi.manager.response.matching import Case, Matcher, Past
from qvmi.manager.response.playbook import AtExit, OnRestart, Playbook, When
from qvmi.manager.response.records import HOLDER, RESPONSE, Outcome, Record
from qvmi.manager.response.run import PlaybookRun, audit, noting, undo_run
from qvmi.manager.response.scene import ReportMaker
from qvmi.policy import Policy, PolicyGate

__all__ = ["Responder"]

MAX_ALERTS: Final = 1024
"""Alerts that wait while a playbook is run; further ones are lost, which is told."""

MAX_OUTGOING: Final = 1024
"""Messages that wait for the bus; the oldest go first."""

_FIRST_PAUSE_S: Final = 0.05
_MAX_PAUSE_S: Final = 5.0
"""Longest time between two attempts to reach the broker."""

_log: Final = logging.getLogger(__name__)


class Responder:
    """This acts on the alerts about one machine.

    Args:
        machine: which.
        playbooks: what is done.
        vm: the machine's name on the bus.
        policy: what may be done.
        journal: what is done is noted in; None for a dry run, in which nothing is.
        tell: takes every message that is published, too.
        report: makes the report of evidence; None for no report.
    """

    def __init__(  # noqa: PLR0913 - what it is made of
        self,
        machine: Machine,
        playbooks: Sequence[Playbook],
        *,
        vm: str,
        policy: Policy,
        journal: Journal | None,
        tell: Callable[[Message], None],
        report: ReportMaker | None = None,
    ) -> None:
        self.account: Final = _account(vm, playbooks)
        self._vm = vm
        self._playbooks = {one.name: one for one in playbooks}
        self._journal = journal
        self._tell = tell
        gate = PolicyGate(HOLDER, policy)
        self._actor = Actor(machine, gate, self._say, report)
        runs = () if journal is None else tuple(journal.runs.values())
        self._matcher = Matcher(playbooks, map(_past, runs))
        self._alerts: asyncio.Queue[Alert] = asyncio.Queue(MAX_ALERTS)
        self._lost = 0
        self._outgoing: deque[Message] = deque(maxlen=MAX_OUTGOING)
        self._news = asyncio.Event()
        self._bus: Bus | None = None
        self._own: list[str] = []

    @property
    def acts(self) -> bool:
        """This tells whether it does what it says."""
        return self._journal is not None

    def take(self, message: Message) -> None:
        """This takes in what was said about the machine; what is no alert leads to nothing."""
        if message.kind not in (AlertState.RAISED, AlertState.CLEARED):
            return
        try:
            alert = message.read_body(Alert)
        except BadMessage as error:
            record("response: %s", error)
            return
        if alert.codepack != message.codepack or alert.state != message.kind:
            # Where a message lies the broker guards; what it says of itself nobody does.
            record("response: an alert of %s that says it is another's", message.codepack)
            return
        try:
            self._alerts.put_nowait(alert)
        except asyncio.QueueFull:
            self._lost += 1

    async def run(self, channel: Channel) -> Never:
        """This acts until it is cancelled.

        Raises:
            BusRefused: the channel does not let it in.
            QvmiError: its journal cannot be written.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_bus(channel), name="qvmi-response-bus")
                group.create_task(self._work(), name="qvmi-response")
        except ExceptionGroup as errors:
            raise first_of(errors) from None
        raise AssertionError("neither of them ends")

    async def close(self) -> None:
        """This undoes what playbooks say is to be undone at the end."""
        await to_the_end(self._undo_own())

    async def _undo_own(self) -> None:
        journal = self._journal
        if journal is None:
            return
        own = [journal.runs[name] for name in self._own if name in journal.runs]
        ends = {run.name: self._playbooks[run.playbook].at_exit for run in own}
        kept = [run for run in own if ends[run.name] is AtExit.KEEP and not run.undone]
        for noted in reversed(own):
            if ends[noted.name] is AtExit.UNDO and not noted.undone:
                await undo_run(noted, self._actor, journal, self._told, kept=kept)

    # -------------------------------------------------------------------------------------------- work

    async def _work(self) -> Never:
        if self._journal is not None:
            for noted in self._journal.cut_off:
                await self._take_up(noted, self._journal)
        while True:
            alert = await self._alerts.get()
            if self._lost:
                record("response: %d alerts were lost, as too many came at once", self._lost)
                self._lost = 0
            for case in self._matcher.offer(alert, now=time.monotonic()):
                await self._respond(case)
            if alert.state is AlertState.CLEARED and self._journal is not None:
                await self._note_cleared(key_of(alert), self._journal)

    async def _note_cleared(self, key: AlertKey, journal: Journal) -> None:
        """This notes what the next watch has to know of an alert that was cleared."""
        try:
            for noted in journal.still_led_to_by(key):
                await noting(journal.clear, noted, key)
        except QvmiError as error:  # then it leads to nothing again once this one has ended
            record("response: %s", error)

    async def _respond(self, case: Case) -> None:
        run = self._new_run(case.playbook, case.alerts, _run_name(case.playbook))
        if case.withheld:
            run.say(Outcome.LEFT_OUT, "it is not run", case.withheld)
            return
        if why := await self._unconfirmed(case):
            run.say(Outcome.LEFT_OUT, "it is not run", why)
            return
        self._own.append(run.scene.run)
        try:
            await run.play()
        except QvmiError as error:  # it could not be noted, so nothing more was done
            run.say(Outcome.FAILED, "it is broken off", str(error))

    def _new_run(self, playbook: Playbook, alerts: tuple[Alert, ...], name: str) -> PlaybookRun:
        return PlaybookRun(
            playbook,
            alerts,
            name=name,
            vm=self._vm,
            actor=self._actor,
            journal=self._journal,
            tell=self._told,
        )

    async def _unconfirmed(self, case: Case) -> str:
        """This asks whom the playbook says, and gives why it is not to be run; empty where it is."""
        ask = case.playbook.when.ask
        if ask is None:
            return ""
        question = ConfirmQuestion.of(alert.finding for alert in case.alerts)
        topic = Topic.of_request(self._vm, HOLDER, ask.codepack)
        try:
            answer = await ask_for(self._require_bus, topic, question, deadline_s=ask.deadline_s)
        except QvmiError as error:
            return f"{ask.codepack} was asked and has not confirmed it: {error}"
        if answer.answer is Answer.CONFIRMED:
            return ""
        return f"{ask.codepack} was asked and says {answer.answer}: {answer.why}"

    async def _take_up(self, noted: Run, journal: Journal) -> None:
        """This goes on with a run that was cut off, or undoes it, as its playbook says."""
        playbook = self._playbooks.get(noted.playbook)
        at = f"it was cut off in step {noted.next_step}"
        how = OnRestart.LEAVE if playbook is None else playbook.on_restart
        if playbook is None or noted.begun > len(playbook.then):
            at, how = f"{at}, and its playbook is not there any more", OnRestart.LEAVE
        run = self._new_run(playbook or _gone(noted), noted.alerts, noted.name)
        run.say(Outcome.FAILED, f"on-restart is {how}", at)
        if how is OnRestart.FINISH:
            self._own.append(noted.name)
            await run.go_on(noted)
        elif how is OnRestart.UNDO:
            await undo_run(noted, self._actor, journal, self._told)
        else:
            await noting(journal.end, noted)

    # --------------------------------------------------------------------------------------------- bus

    async def _require_bus(self) -> Bus:
        """This is the bus, which is waited for while it is lost."""
        while self._bus is None:
            self._news.clear()
            await self._news.wait()
        return self._bus

    async def _keep_bus(self, channel: Channel) -> Never:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                bus = await channel.connect(self.account)
            except BusRefused:
                raise
            except BusError as error:
                _log.debug("the bus is lost: %s", error)
            else:
                pause_s = _FIRST_PAUSE_S
                await self._session(bus)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    async def _session(self, bus: Bus) -> None:
        """This publishes what there is over one connection, until that is lost."""
        self._bus = bus
        self._news.set()
        try:
            while True:
                self._news.clear()
                while self._outgoing:
                    await bus.publish(self._outgoing[0])
                    self._outgoing.popleft()
                await self._news.wait()
        except BusError as error:
            _log.debug("the bus is lost: %s", error)
        finally:
            self._bus = None
            await bus.close()

    def _told(self, told: Record) -> None:
        audit(told)
        self._say(RESPONSE, msgspec.to_builtins(told))

    def _say(self, kind: str, body: dict[str, object]) -> None:
        message = Message(vm=self._vm, codepack=HOLDER, kind=kind, time=time.time(), body=body)
        self._tell(message)
        self._outgoing.append(message)
        self._news.set()


def _account(vm: str, playbooks: Sequence[Playbook]) -> Account:
    """This is who says what is done, and asks the codepacks that playbooks name."""
    asked = sorted({one.when.ask.codepack for one in playbooks if one.when.ask is not None})
    requests = (TopicFilter(vm, HOLDER, REQUEST, name) for name in asked)
    replies = tuple(TopicFilter(vm, HOLDER, REPLY, name) for name in asked)
    return Account(f"{vm}.{HOLDER}", (TopicFilter(vm, HOLDER, ANY), *requests), replies)


def _past(noted: Run) -> Past:
    """This is what counts of a run of an earlier watch, which began just now where a clock was set back."""
    age_s = max(0.0, time.time() - noted.at)
    return Past(noted.playbook, noted.alerts, noted.cleared, time.monotonic() - age_s)


def _run_name(playbook: Playbook) -> str:
    """This is a name that no other run has, and that says when it was."""
    at = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    return f"{playbook.name}-{at}-{secrets.token_hex(2)}"


def _gone(noted: Run) -> Playbook:
    """This stands for a playbook that the file has no more."""
    return Playbook(noted.playbook, When(), ())
