"""Codepacks that look because something happened, or because somebody asks."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import pytest
from jsonschema_rs import Draft202012Validator

from qvmi.addr import Va
from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import Bus, OpenChannel
from qvmi.bus.local import in_process
from qvmi.bus.topic import Topic
from qvmi.codepacks.codepack import Finding, Observation
from qvmi.codepacks.detectors.flows_without_owner import FlowsWithoutOwner
from qvmi.codepacks.event_bell import EventBell
from qvmi.codepacks.manifest import parse_manifest
from qvmi.codepacks.question import Answer, ConfirmAnswer, ConfirmQuestion, ask_for
from qvmi.codepacks.questions import MAX_ASKING, LookAnswer
from qvmi.codepacks.runner import Runner
from qvmi.codepacks.status import Sight, Status
from qvmi.codepacks.triggers import Triggers, triggers_of
from qvmi.codepacks.wake import Wake
from qvmi.errors import BadSettings, BusRefused, CodepackError, QvmiError, UnknownGuest
from qvmi.machine.devices.flow_watch import Flow
from qvmi.manager.accounts import answering_account
from qvmi.manager.runner_end import run_with_questions
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Policy
from qvmi.semantics.guest_os import GuestOS, Listing
from qvmi.semantics.rows.events import (
    EventKind,
    GuestEvent,
    Missed,
    ProcessExeced,
    ProcessStarted,
    What,
)
from qvmi.testing import FakeGuest, FakeMachine, fake_flow, fake_process, fake_resources
from tests.asynchronous import asynchronous, until
from tests.documented_schemas import documented, require_documented
from tests.unit.codepacks.packs import ScriptedPack, finding
from tests.unit.codepacks.recording_bus import RecordingBus

LABEL = FakeGuest().provenance
STARTED = ProcessStarted(0.0, LABEL, fake_process(7))
EXECED = ProcessExeced(0.0, LABEL, fake_process(7), "sh", 1)
MISSED = Missed(0.0, LABEL, What.FORKS, 3)
NEVER_S = 100_000.0
WAIT_S = 60.0
PLACE = Va(0xFFFF_8880_0000_1000)


class Happenings:
    """What tells of events: those that the test puts into it, or that it cannot."""

    def __init__(self, error: QvmiError | None = None) -> None:
        self.error = error
        self.kinds: Collection[str] | None = None
        self.queue: asyncio.Queue[GuestEvent] = asyncio.Queue()

    def events(
        self, kinds: Collection[str] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[GuestEvent]]:
        self.kinds = kinds
        return self._watched()

    @asynccontextmanager
    async def _watched(self) -> AsyncIterator[AsyncIterator[GuestEvent]]:
        if self.error is not None:
            raise self.error
        yield self._all()

    async def _all(self) -> AsyncIterator[GuestEvent]:
        while True:
            yield await self.queue.get()


class Looks:
    """A codepack's function that counts its looks, and finds what it is told to."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.count = 0

    def __call__(self, guest: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        guest.processes()
        self.count += 1
        place = Observation(view="list", present=True, address=PLACE)
        return [msgspec.structs.replace(finding(key), evidence=(place,)) for key in self.keys]


def runner_of(looks: Looks, triggers: Triggers) -> Runner:
    pack = ScriptedPack(looks, interval_s=NEVER_S)
    return Runner(pack, FakeMachine(), vm="web", triggers=triggers)


@asynccontextmanager
async def running(runner: Runner, source: Happenings | None) -> AsyncIterator[RecordingBus]:
    bus = RecordingBus()
    tasks = {
        asyncio.create_task(runner.run(bus)),
        asyncio.create_task(EventBell(source, [runner]).run()),
    }
    try:
        yield bus
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynchronous
async def test_an_event_that_it_names_makes_it_look_and_so_does_one_that_was_missed() -> None:
    looks, source = Looks(), Happenings()
    named = Triggers(frozenset({EventKind.EXECED}), min_gap_s=0.001)
    async with running(runner_of(looks, named), source):
        await until(lambda: looks.count == 1)
        for number, event in enumerate((EXECED, MISSED, EXECED)):
            source.queue.put_nowait(STARTED)  # it did not name that
            source.queue.put_nowait(event)
            await until(lambda seen=number + 2: looks.count == seen)  # type: ignore[misc] # bound now
    assert source.kinds == {EventKind.EXECED}


@asynchronous
async def test_a_storm_of_events_is_no_storm_of_looks() -> None:
    looks, source = Looks(), Happenings()
    named = Triggers(frozenset({EventKind.STARTED}), min_gap_s=NEVER_S)
    async with running(runner_of(looks, named), source):
        await until(lambda: looks.count == 1)
        for _ in range(10_000):
            source.queue.put_nowait(STARTED)
        await until(source.queue.empty)
    assert looks.count == 1


@pytest.mark.parametrize("source", [None, Happenings(UnknownGuest("nothing runs"))])
@asynchronous
async def test_that_events_cannot_be_watched_is_told(source: Happenings | None) -> None:
    runner = runner_of(Looks(), Triggers(frozenset({EventKind.STARTED})))
    async with running(runner, source) as bus:
        await bus.until(lambda: bool(bus.messages))
        runner.wake.ring()
        await bus.until(
            lambda: "without events" in bus.of_kind("status")[-1].read_body(Status).problem
        )
        assert bus.of_kind("status")[-1].read_body(Status).sight is Sight.FULL


@asynchronous
async def test_who_rings_while_nobody_waits_is_heard_the_next_time() -> None:
    wake, loop = Wake(), asyncio.get_running_loop()
    wake.ring()
    async with asyncio.timeout(WAIT_S):
        await wake.wait(loop.time() + NEVER_S, not_before=loop.time())
        wake.ring()
        due = loop.time() + 0.02
        await wake.wait(due, not_before=loop.time() + NEVER_S)  # its time comes first
    assert loop.time() >= due


@asynccontextmanager
async def asked(
    opened: OpenChannel, runner: Runner, *, asker: Account | None = None
) -> AsyncIterator[Bus]:
    """This is the end of a codepack that may ask another one, which runs."""
    own = answering_account(Account.of_codepack("web", "scripted"), "web", "scripted")
    other = asker or Account.of_codepack("web", "asker", services=["scripted"])
    async with opened([own, other]) as channel:
        bus = await channel.connect(own)
        asking = await channel.connect(other)
        task = asyncio.create_task(run_with_questions(runner, bus, bus, vm="web"))
        try:
            yield asking
        finally:
            task.cancel()
            await asyncio.wait({task})
            await asking.close()
            await bus.close()


TOPIC = Topic.of_request("web", "asker", "scripted")


@pytest.mark.parametrize("opened", [in_process, mosquitto])
@asynchronous
async def test_a_question_is_answered_by_a_look_that_began_after_it(opened: OpenChannel) -> None:
    looks = Looks()
    runner = runner_of(looks, Triggers(answers=True, min_gap_s=0.001))
    async with asyncio.timeout(WAIT_S), asked(opened, runner) as bus:
        await until(lambda: looks.count == 1)
        looks.keys = ("k",)
        said = []
        for _ in range(3):
            reply = await bus.request(TOPIC, {}, deadline_s=WAIT_S)
            require_documented(reply, body="look-answer")
            said.append(reply.read_body(LookAnswer))
    assert [len(answer.items) for answer in said] == [1, 1, 1]
    assert [answer.items[0].confirmed for answer in said] == [False, True, True]
    assert said[0].sight is Sight.FULL
    assert said[0].items[0].finding.key == "k"


class AskedFlows(FlowsWithoutOwner):
    """One that is called as who is asked."""

    name = "scripted"


class Watching(FakeMachine):
    """A machine whose flows take until they are let through, and are those of the beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.through = asyncio.Event()

    async def flows(
        self, seconds: float, *, netdev: str | None = None, least_looks: int = 1
    ) -> Listing[Flow]:
        shown = await super().flows(seconds, netdev=netdev, least_looks=least_looks)
        await self.through.wait()
        return shown


@asynchronous
async def test_a_question_is_not_answered_by_what_was_being_fetched_when_it_came() -> None:
    machine, pack = Watching(), AskedFlows(NEVER_S)
    triggers = Triggers(answers=True, min_gap_s=0.001)
    policy = Policy(pack.grants)
    runner = Runner(pack, machine, vm="web", triggers=triggers, policy=policy)
    async with asyncio.timeout(WAIT_S), asked(in_process, runner) as bus:
        await until(lambda: "flows" in machine.calls)
        unowned = fake_flow("192.0.2.7:443", unowned=True, pid=None, socket=None)
        machine.resources = fake_resources(flows=[unowned])
        reply = asyncio.create_task(bus.request(TOPIC, {}, deadline_s=WAIT_S))
        for _ in range(100):  # until the question is there
            await asyncio.sleep(0)
        machine.through.set()
        answer = (await reply).read_body(LookAnswer)
    assert [len(answer.items), machine.calls.count("flows")] == [1, 2]


@asynchronous
async def test_a_question_whether_something_is_seen_is_answered_by_what_the_look_sees() -> None:
    looks = Looks("k")
    runner = runner_of(looks, Triggers(answers=True, min_gap_s=0.001))
    questions = [
        ConfirmQuestion(addresses=(PLACE,)),
        ConfirmQuestion(addresses=(PLACE + 1,), pids=(4,)),
    ]
    async with asyncio.timeout(WAIT_S), asked(in_process, runner) as bus:
        await until(lambda: looks.count == 1)

        async def asking() -> Bus:
            return bus

        said = [
            (await ask_for(asking, TOPIC, question, deadline_s=WAIT_S)).answer
            for question in questions
        ]
        reply = await bus.request(TOPIC, {"what": "confirm", "addresses": "all"}, deadline_s=WAIT_S)
        require_documented(reply, body="confirm-answer")
        said.append(reply.read_body(ConfirmAnswer).answer)
    for question in questions:
        body = msgspec.to_builtins(question)
        Draft202012Validator(documented("confirm-question")).validate(json.loads(json.dumps(body)))
    assert said == [Answer.CONFIRMED, Answer.DENIED, Answer.UNKNOWN]


@asynchronous
async def test_questions_at_once_are_answered_by_one_look_and_too_many_are_refused() -> None:
    looks, leave = Looks("k"), threading.Event()

    def inspect(guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        found = looks(guest, memory)
        leave.wait(WAIT_S)
        return found

    pack = ScriptedPack(inspect, interval_s=NEVER_S)
    triggers = Triggers(answers=True, min_gap_s=0.001)
    runner = Runner(pack, FakeMachine(), vm="web", triggers=triggers, look_deadline_s=2 * WAIT_S)
    async with asyncio.timeout(WAIT_S), asked(in_process, runner) as bus:
        await until(lambda: looks.count == 1)
        questions = {
            asyncio.create_task(bus.request(TOPIC, {}, deadline_s=WAIT_S))
            for _ in range(MAX_ASKING + 4)
        }
        await until(lambda: sum(one.done() for one in questions) == 4)
        leave.set()
        replies = await asyncio.gather(*questions)
    refused = [one for one in replies if "ask again later" in str(one.body.get("problem"))]
    assert (len(refused), looks.count) == (4, 2)
    for reply in replies:
        require_documented(reply, body="look-answer")


@asynchronous
async def test_an_answer_says_what_had_no_room_in_it() -> None:
    looks = Looks(*(f"{number:0200}" for number in range(900)))
    runner = runner_of(looks, Triggers(answers=True, min_gap_s=0.001))
    async with asyncio.timeout(WAIT_S), asked(in_process, runner) as bus:
        await until(lambda: looks.count == 1)
        answer = (await bus.request(TOPIC, {}, deadline_s=WAIT_S)).read_body(LookAnswer)
    assert len(answer.items) + answer.left_out == 900
    assert answer.items
    assert answer.left_out


@asynchronous
async def test_who_may_not_ask_is_refused_and_no_look_is_made() -> None:
    looks = Looks()
    stranger = Account.of_codepack("web", "asker")
    runner = runner_of(looks, Triggers(answers=True))
    async with asyncio.timeout(WAIT_S), asked(mosquitto, runner, asker=stranger) as bus:
        await until(lambda: looks.count == 1)
        with pytest.raises(BusRefused):
            await bus.request(TOPIC, {}, deadline_s=5.0)
    assert looks.count == 1


MANIFEST = b"""\
manifest = 1
name = "pack"
version = "1"
entry = "a:B"
[management]
"""


def test_a_manifest_says_what_its_codepack_looks_for() -> None:
    lines = b'on-events = ["execed", "loaded"]\nanswers = true\nmin-gap-s = 0.5\n'
    management = parse_manifest("codepack.toml", MANIFEST + lines).management
    kinds = frozenset({EventKind.EXECED, EventKind.LOADED})
    assert management.triggers == Triggers(kinds, answers=True, min_gap_s=0.5)
    assert parse_manifest("codepack.toml", MANIFEST).management.triggers == Triggers()


@pytest.mark.parametrize("line", [b'on-events = ["sneezed"]', b"answers = 1", b"min-gap-s = 0"])
def test_a_manifest_with_a_trigger_that_cannot_be_is_refused(line: bytes) -> None:
    with pytest.raises(BadSettings):
        parse_manifest("codepack.toml", MANIFEST + line)


def test_triggers_that_are_none_are_refused() -> None:
    pack = ScriptedPack()
    assert triggers_of(pack) == Triggers()
    pack.triggers = ["execed"]  # type: ignore[attr-defined] # as somebody may write
    with pytest.raises(CodepackError):
        triggers_of(pack)
