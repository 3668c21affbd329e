"""Services: started, supervised, cancelled, started again, and told of where they misbehave."""

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import OpenChannel
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.codepacks.alert import Alert, AlertState
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.looker import InspectedMachine
from qvmi.codepacks.manifest import Management, Restart
from qvmi.codepacks.packaging.pack_folder import PackFolder
from qvmi.codepacks.packaging.pack_loader import load_any, load_bytes
from qvmi.codepacks.questions import LookAnswer
from qvmi.codepacks.service import ServiceBus, ServicePack, is_service
from qvmi.codepacks.service_runner import ServiceRunner
from qvmi.codepacks.status import Sight, Status
from qvmi.errors import BusError, CodepackError, CodepackRefused, MachineGone
from qvmi.manager.watch import Watch, watch
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeGuest, FakeMachine
from tests.asynchronous import asynchronous, until
from tests.unit.codepacks.packs import ScriptedPack, finding
from tests.unit.codepacks.recording_bus import RecordingBus

WAIT_S = 60.0
LABEL = FakeGuest().provenance
Serve = Callable[[ServiceBus, InspectedMachine], Awaitable[None]]


async def forever(_: ServiceBus, __: InspectedMachine) -> None:
    await asyncio.Event().wait()


@dataclass
class Service:
    """A service that runs a function of the test."""

    does: Serve = forever
    name: str = "service"
    grants: frozenset[Grant] = field(default_factory=frozenset)

    async def serve(self, bus: ServiceBus, machine: InspectedMachine) -> None:
        await self.does(bus, machine)


class Asked:
    """A codepack's function that finds one thing."""

    def __call__(self, guest: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        guest.processes()
        return [finding("k")]


@asynccontextmanager
async def watching(
    *packs: Codepack | ServicePack, opened: OpenChannel = in_process, **management: Management
) -> AsyncIterator[Watch]:
    async with (
        asyncio.timeout(WAIT_S),
        watch(FakeMachine(), packs=packs, vm="web", bus=opened, management=management) as documents,
    ):
        yield documents


async def next_of(documents: Watch, codepack: str, kind: str, words: str = "") -> Message:
    async for message in documents:
        fits = (message.codepack, message.kind) == (codepack, kind)
        if fits and words in str(message.body.get("problem", "")):
            return message
    raise AssertionError(f"the watch ended without {kind} of {codepack}")


@pytest.mark.parametrize("opened", [in_process, mosquitto])
@asynchronous
async def test_a_service_asks_another_codepack_and_raises_and_clears_an_alert(
    opened: OpenChannel,
) -> None:
    async def confirm(bus: ServiceBus, _: InspectedMachine) -> None:
        answer = LookAnswer(
            sight=Sight.BLIND, problem="", items=(), left_out=0, gap_count=0, provenance=LABEL
        )
        while not answer.items:
            reply = await bus.ask("scripted", {}, deadline_s=5.0)
            answer = reply.read_body(LookAnswer)
        assert await bus.raise_alert(answer.items[0].finding, answer.provenance)
        assert not await bus.raise_alert(answer.items[0].finding, answer.provenance)
        assert await bus.clear_alert("k", because="it was only a test")
        assert not await bus.clear_alert("k", because="again")
        await forever(bus, _)

    looking = ScriptedPack(Asked(), interval_s=0.05)
    managed = Management(interval_s=0.05, answers=True, min_gap_s=0.01)
    async with watching(looking, Service(confirm), opened=opened, scripted=managed) as documents:
        raised = (await next_of(documents, "service", "alert")).read_body(Alert)
        cleared = (await next_of(documents, "service", "cleared")).read_body(Alert)
    assert (raised.state, raised.finding) == (AlertState.RAISED, finding("k"))
    assert (cleared.evidence_hash, cleared.reason) == (raised.evidence_hash, "it was only a test")


@asynchronous
async def test_one_service_answers_what_another_asks() -> None:
    async def answer(bus: ServiceBus, _: InspectedMachine) -> None:
        async for request in await bus.questions():
            await request.reply({"twice": 2 * int(str(request.body["number"]))})

    heard: list[object] = []

    async def ask(bus: ServiceBus, machine: InspectedMachine) -> None:
        while not heard:
            try:
                reply = await bus.ask("answers", {"number": 21}, deadline_s=0.5)
            except BusError:  # it does not listen yet
                continue
            heard.append(reply.body["twice"])
        await forever(bus, machine)

    async with watching(Service(answer, name="answers"), Service(ask, name="asks")):
        await until(lambda: bool(heard))
    assert heard == [42]


@asynchronous
async def test_a_service_that_fails_is_told_and_started_again() -> None:
    lives = 0

    async def fail(bus: ServiceBus, machine: InspectedMachine) -> None:
        nonlocal lives
        lives += 1
        if lives < 3:
            raise ZeroDivisionError("by accident")
        await forever(bus, machine)

    async with watching(Service(fail)) as documents:
        told = (await next_of(documents, "service", "status", "by accident")).read_body(Status)
        await until(lambda: lives == 3)
    assert (told.sight, told.problem) == (Sight.FAILED, "ZeroDivisionError: by accident")


@pytest.mark.parametrize(
    ("management", "lives"),
    [
        (Management(max_restarts=2), 3),
        (Management(restart=Restart.NEVER), 1),
    ],
)
@asynchronous
async def test_a_service_that_fails_as_often_as_its_manifest_says_is_given_up(
    management: Management, lives: int
) -> None:
    count = 0

    async def fail(_: ServiceBus, __: InspectedMachine) -> None:
        nonlocal count
        count += 1
        raise SystemExit("no more")

    with pytest.raises(CodepackError, match="given up"):
        async with watching(Service(fail), service=management) as documents:
            await next_of(documents, "service", "nothing")
    assert count == lives


@asynchronous
async def test_one_that_ends_by_itself_is_started_again_only_where_it_always_is() -> None:
    count = 0

    async def end(_: ServiceBus, __: InspectedMachine) -> None:
        nonlocal count
        count += 1

    async with watching(Service(end), service=Management(restart=Restart.ALWAYS)):
        await until(lambda: count >= 3)
    count = 0
    with pytest.raises(CodepackError, match="ended by itself"):
        async with watching(Service(end)) as documents:
            await next_of(documents, "service", "nothing")
    assert count == 1


@asynchronous
async def test_it_is_cancelled_when_the_watch_ends_and_the_machine_with_it() -> None:
    left: list[str] = []

    async def live(bus: ServiceBus, machine: InspectedMachine) -> None:
        try:
            await forever(bus, machine)
        finally:
            left.append(bus.codepack)

    async with watching(Service(live)) as documents:
        await next_of(documents, "service", "status")
    assert left == ["service"]
    machine, bus = FakeMachine(), RecordingBus()
    machine.fail_next("run_state", MachineGone("query-status"))
    async with asyncio.timeout(WAIT_S):
        await ServiceRunner(Service(live), machine, vm="web").run(bus, bus)  # type: ignore[arg-type] # only publishes
    assert left == ["service"] * 2
    assert bus.of_kind("status")[-1].read_body(Status).sight is Sight.ENDED


@asynchronous
async def test_one_that_fails_as_the_machine_goes_leaves_nothing_for_asyncio_to_complain_of() -> (
    None
):
    complaints: list[dict[str, object]] = []

    async def fail(_: ServiceBus, __: InspectedMachine) -> None:
        raise ZeroDivisionError

    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    machine, bus = FakeMachine(), RecordingBus()
    machine.fail_next("run_state", MachineGone("query-status"))
    async with asyncio.timeout(WAIT_S):
        await ServiceRunner(Service(fail), machine, vm="web").run(bus, bus)  # type: ignore[arg-type] # only publishes
    gc.collect()
    assert bus.of_kind("status")[-1].read_body(Status).sight is Sight.ENDED
    assert complaints == []


@asynchronous
async def test_one_that_swallows_its_cancellation_is_left_to_itself_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("qvmi.codepacks.service_runner.CANCEL_S", 0.05)
    leave = asyncio.Event()
    begun = asyncio.Event()

    async def stay(_: ServiceBus, __: InspectedMachine) -> None:
        begun.set()
        while not leave.is_set():
            try:
                await leave.wait()
            except asyncio.CancelledError:
                continue

    try:
        async with watching(Service(stay)):
            await begun.wait()
    finally:
        leave.set()
        await asyncio.sleep(0)
    assert "left to itself" in caplog.text


@asynchronous
async def test_one_that_holds_up_the_event_loop_is_named_while_it_does_and_told_afterwards(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("qvmi.codepacks.loop_watch.HELD_UP_S", 0.05)

    async def block(bus: ServiceBus, machine: InspectedMachine) -> None:
        deadline = time.monotonic() + WAIT_S
        while "qvmi-service-service has it" not in caplog.text and time.monotonic() < deadline:
            threading.Event().wait(0.01)  # nothing else runs on this loop
        await forever(bus, machine)

    async with watching(Service(block)) as documents:
        words = "qvmi-service-service held up"
        told = (await next_of(documents, "watch", "status", words)).read_body(Status)
    assert "task qvmi-service-service has it" in caplog.text
    assert told.problem.startswith("task qvmi-service-service held up everybody for ")


@asynchronous
async def test_more_alerts_than_anybody_reads_are_not_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.codepacks.alert_budget.BURST", 3)
    monkeypatch.setattr("qvmi.codepacks.alert_budget.PER_S", 0.0)
    raised: list[bool] = []

    async def flood(bus: ServiceBus, machine: InspectedMachine) -> None:
        raised.extend([await bus.raise_alert(finding(str(key)), LABEL) for key in range(5)])
        await forever(bus, machine)

    async with watching(Service(flood)):
        await until(lambda: len(raised) == 5)
    assert raised == [True, True, True, False, False]


@asynchronous
async def test_one_alert_that_is_raised_and_cleared_twice_at_a_time_is_said_once() -> None:
    done: list[bool] = []

    async def twice(bus: ServiceBus, machine: InspectedMachine) -> None:
        done.extend(await asyncio.gather(*(bus.raise_alert(finding("k"), LABEL) for _ in "12")))
        done.extend(await asyncio.gather(*(bus.clear_alert("k", because="over") for _ in "12")))
        await forever(bus, machine)

    async with watching(Service(twice), opened=mosquitto):
        await until(lambda: len(done) == 4)
    assert done == [True, False, True, False]


CODE = """\
from qvmi.policy import Grant

class Answers:
    name = "answers"
    grants = frozenset({Grant.READ_MEMORY})

    def __init__(self, *, interval_s):
        pass

    async def serve(self, bus, machine):
        pass
"""


def folder_of(path: Path, kind: str) -> PackFolder:
    path.mkdir()
    (path / "answers.py").write_text(CODE)
    (path / "codepack.toml").write_text(
        f'manifest = 1\nname = "answers"\nversion = "1"\nentry = "answers:Answers"\n{kind}'
        'grants = ["read-memory"]\n'
    )
    return PackFolder.read(path)


def test_the_manifest_says_that_it_is_a_service_and_the_code_must_be_one(tmp_path: Path) -> None:
    service = folder_of(tmp_path / "service", 'kind = "service"\n')
    assert is_service(load_any(service))
    with pytest.raises(CodepackRefused, match="not asked to look"):
        load_bytes(service)
    with pytest.raises(CodepackRefused, match="its manifest calls it inspect"):
        load_any(folder_of(tmp_path / "other", ""))
