"""A codepack is asked over a bus whether it sees something, again and again until its answer comes."""

import asyncio
import time
from collections.abc import Iterable
from contextlib import suppress

import msgspec
import pytest

from qvmi.addr import Va
from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import Bus, Channel, OpenChannel
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.bus.topic import REPLY, REQUEST, Topic, TopicFilter
from qvmi.codepacks.codepack import Finding, Observation, Severity
from qvmi.codepacks.question import Answer, ConfirmAnswer, ConfirmQuestion, ask_for
from qvmi.errors import RequestTimeout
from qvmi.manager.watch import watch
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeMachine
from tests.asynchronous import asynchronous
from tests.unit.codepacks.packs import ScriptedPack

ASKER = Account(
    "web.asker",
    (TopicFilter("web", "asker", REQUEST, "scripted"),),
    (TopicFilter("web", "asker", REPLY, "scripted"),),
)
TOPIC = Topic.of_request("web", "asker", "scripted")

every_bus = pytest.mark.parametrize(
    "bus", [pytest.param(in_process, id="local"), pytest.param(mosquitto, id="mqtt")]
)


def finding(*, pid: int | None = None, address: int | None = None) -> Finding:
    facts: dict[str, str | int | float | bool | None] = {} if pid is None else {"pid": pid}
    place = None if address is None else Va(address)
    seen = Observation(view="v", present=True, address=place, facts=facts)
    return Finding(
        claim="it hides", severity=Severity.HIGH, technique="T1014", key="k", evidence=(seen,)
    )


def test_true_is_no_pid_and_nothing_is_about_nothing() -> None:
    assert ConfirmQuestion.of([finding(pid=True)]).pids == ()
    assert not ConfirmQuestion().is_about(finding())


async def insisted(bus: Bus) -> Message:
    """Asks what is no question until whoever is asked is there."""
    while True:
        with suppress(RequestTimeout):
            return await bus.request(TOPIC, {"what": 1}, deadline_s=0.5)


class Beside:
    """Asks a question as a companion of a watch does."""

    def __init__(self, question: object, deadline_s: float) -> None:
        self.account = ASKER
        self.answer: asyncio.Future[ConfirmAnswer] = asyncio.get_running_loop().create_future()
        self._question = question
        self._deadline_s = deadline_s

    async def run(self, channel: Channel) -> None:
        bus = await channel.connect(self.account)

        async def connected() -> Bus:
            return bus

        try:
            if isinstance(self._question, ConfirmQuestion):
                told = await ask_for(connected, TOPIC, self._question, deadline_s=self._deadline_s)
            else:
                told = msgspec.convert((await insisted(bus)).body, ConfirmAnswer)
            self.answer.set_result(told)
        except RequestTimeout as error:
            self.answer.set_exception(error)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await bus.close()


async def asked(
    bus: OpenChannel, pack: ScriptedPack, question: object, *, deadline_s: float = 60.0
) -> ConfirmAnswer:
    beside = Beside(question, deadline_s)
    machine = FakeMachine()
    async with watch(
        machine,
        packs=[pack],
        bus=bus,
        vm="web",
        companions=[beside],  # type: ignore[list-item] # it ends when it is cancelled
        asked={"scripted"},
    ):
        return await beside.answer


@every_bus
@asynchronous
async def test_a_codepack_of_a_watch_confirms_what_it_sees_now(bus: OpenChannel) -> None:
    def hidden(guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:  # noqa: ARG001
        return [finding(pid=7)]

    answer = await asked(bus, ScriptedPack(hidden), ConfirmQuestion(pids=(7,)))
    assert answer == ConfirmAnswer(answer=Answer.CONFIRMED, why="it hides")
    answer = await asked(bus, ScriptedPack(hidden), ConfirmQuestion(pids=(8,)))
    assert answer.answer is Answer.DENIED


@every_bus
@asynchronous
async def test_what_is_no_question_is_answered_as_such(bus: OpenChannel) -> None:
    answer = await asked(bus, ScriptedPack(), None)
    assert answer.answer is Answer.UNKNOWN
    assert "no question" in answer.why


@asynchronous
async def test_nobody_who_answers_has_not_confirmed_it() -> None:
    began = time.monotonic()
    async with in_process([ASKER]) as channel:
        bus = await channel.connect(ASKER)

        async def connected() -> Bus:
            return bus

        with pytest.raises(RequestTimeout):
            await ask_for(connected, TOPIC, ConfirmQuestion(pids=(7,)), deadline_s=0.2)
        await bus.close()
    assert time.monotonic() - began >= 0.2
