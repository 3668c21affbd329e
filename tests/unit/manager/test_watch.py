"""Watching a machine: codepacks, bus and broker together."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from qvmi.bus.account import Account
from qvmi.bus.broker import Broker, mosquitto
from qvmi.bus.bus import Bus, Channel, OpenChannel
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.bus.requests import Requests
from qvmi.bus.subscription import MAX_WAITING_MESSAGES, Subscription
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.codepacks.alert import Alert
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.look import MAX_FINDINGS
from qvmi.codepacks.manifest import Management, Restart
from qvmi.codepacks.status import Sight, Status
from qvmi.errors import (
    BrokerUnavailable,
    BusError,
    CodepackError,
    MachineGone,
    PolicyDenied,
    UsageError,
)
from qvmi.manager.watch import Watch, watch
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant, Policy
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous, until
from tests.unit.bus.processes import ended
from tests.unit.bus.raw_mqtt import NOT_AUTHORIZED, publish_raw
from tests.unit.codepacks.packs import ScriptedPack, finding

INIT, EVIL = fake_process(1, name="init"), fake_process(666, name="evil")
QUICK = HiddenProcesses(interval_s=0.005)

every_bus = pytest.mark.parametrize(
    "bus", [pytest.param(in_process, id="local"), pytest.param(mosquitto, id="mqtt")]
)


class Opened:
    """Opens mosquitto and lets a test get at it.

    Attributes:
        broker: what was opened.
        given: the kinds of the messages that were given to it, answered or not, in order.
    """

    def __init__(self) -> None:
        self.broker: Broker | None = None
        self.given: list[str] = []

    @asynccontextmanager
    async def __call__(self, accounts: Sequence[Account]) -> AsyncIterator[Channel]:
        async with mosquitto(accounts) as self.broker:
            yield self

    async def connect(self, account: Account, *, will: Message | None = None) -> Bus:
        """Connects to mosquitto, and notes from then on what is published."""
        assert self.broker is not None
        return NotedBus(await self.broker.connect(account, will=will), self.given)

    @property
    def pid(self) -> int:
        assert self.broker is not None
        assert self.broker.pid is not None
        return self.broker.pid

    def kill(self) -> None:
        """Kills mosquitto if it runs, and waits until it is dead."""
        if self.broker is not None and self.broker.pid is not None:
            pid = self.broker.pid
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            assert ended(pid)


@dataclass(frozen=True)
class NotedBus:
    """A real bus, and the kinds of the messages that were given to it before it took them."""

    bus: Bus
    given: list[str]

    async def publish(self, message: Message, *, retain: bool = False) -> None:
        self.given.append(message.kind)
        await self.bus.publish(message, retain=retain)

    async def subscribe(
        self, topics: TopicFilter, *, retained: bool = True, group: str | None = None
    ) -> Subscription:
        return await self.bus.subscribe(topics, retained=retained, group=group)

    async def request(
        self, topic: Topic, body: Mapping[str, object], *, deadline_s: float
    ) -> Message:
        return await self.bus.request(topic, body, deadline_s=deadline_s)

    async def serve(
        self, service: str, *, vm: str | None = None, group: str | None = None
    ) -> Requests:
        return await self.bus.serve(service, vm=vm, group=group)

    async def close(self) -> None:
        await self.bus.close()


def with_a_hidden_process() -> FakeMachine:
    return FakeMachine(FakeGuest(processes=[INIT], process_ids=[INIT, EVIL]))


async def next_of_kind(documents: Watch, kind: str) -> Message:
    async with asyncio.timeout(20):
        async for message in documents:
            if message.kind == kind:
                return message
    raise AssertionError(f"ended without {kind}")


@every_bus
@asynchronous
async def test_an_alert_arrives_and_is_cleared_when_what_it_tells_of_is_gone(
    bus: OpenChannel,
) -> None:
    guest = FakeGuest(processes=[INIT], process_ids=[INIT, EVIL])
    async with watch(FakeMachine(guest), packs=[QUICK], bus=bus) as documents:
        raised = (await next_of_kind(documents, "alert")).read_body(Alert)
        guest.show_process_ids([INIT])
        cleared = (await next_of_kind(documents, "cleared")).read_body(Alert)
    assert "666 (evil)" in raised.finding.claim
    assert cleared.evidence_hash == raised.evidence_hash


@asynchronous
async def test_the_machines_name_on_the_bus_is_made_of_its_address_or_given() -> None:
    machine = FakeMachine(address="/run/vm/Web 1/qmp.sock")
    async with watch(machine, packs=[QUICK], bus=in_process) as documents:
        assert (await next_of_kind(documents, "status")).vm == "run-vm-web-1-qmp-sock"
    async with watch(machine, packs=[QUICK], bus=in_process, vm="web") as documents:
        assert (await next_of_kind(documents, "status")).vm == "web"


@asynchronous
async def test_all_codepacks_are_heard() -> None:
    def inspect(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        return [finding()]

    packs = [ScriptedPack(inspect, name=name) for name in ("one", "two", "three")]
    async with watch(FakeMachine(), packs=packs) as documents:
        heard = {(await next_of_kind(documents, "alert")).codepack for _ in packs}
    assert heard == {"one", "two", "three"}


@asynchronous
async def test_one_codepack_that_fails_or_hangs_does_not_silence_another() -> None:
    release = threading.Event()

    def hang(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        release.wait(20)
        return []

    def fail(_: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        raise SystemExit(1)

    packs: list[Codepack] = [ScriptedPack(hang, name="hangs"), ScriptedPack(fail, name="fails")]
    packs.append(QUICK)
    async with watch(with_a_hidden_process(), packs=packs) as documents:
        assert (await next_of_kind(documents, "alert")).codepack == "hidden-processes"
        release.set()


@every_bus
@asynchronous
async def test_who_asks_late_is_told_how_far_a_codepack_sees(bus: OpenChannel) -> None:
    late = Account.of_reader("late", TopicFilter("web", kind="status"))
    channels: list[Channel] = []

    @asynccontextmanager
    async def opened(accounts: Sequence[Account]) -> AsyncIterator[Channel]:
        async with bus([*accounts, late]) as channel:
            channels.append(channel)
            yield channel

    async with watch(FakeMachine(), packs=[QUICK], bus=opened, vm="web") as documents:
        told = await next_of_kind(documents, "status")
        reader = await channels[0].connect(late)
        arriving = await reader.subscribe(TopicFilter("web", kind="status"))
        assert (await anext(arriving)).id == told.id
        await reader.close()


@every_bus
@asynchronous
async def test_nothing_is_left_when_the_block_ends(bus: OpenChannel) -> None:
    before = asyncio.all_tasks()
    async with watch(with_a_hidden_process(), packs=[QUICK], bus=bus) as documents:
        await next_of_kind(documents, "alert")
    assert [message async for message in documents if message.kind == "alert"] == []
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@asynchronous
async def test_no_broker_is_left_when_the_block_raises_or_is_cancelled() -> None:
    pids: list[int] = []

    async def block(error: BaseException) -> None:
        opened = Opened()
        async with watch(with_a_hidden_process(), packs=[QUICK], bus=opened):
            pids.append(opened.pid)
            raise error

    for error in (ValueError("in the block"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            await block(error)
        assert ended(pids[-1], within_s=0.0)


@asynchronous
async def test_no_broker_is_left_when_the_reader_is_cancelled_while_it_waits() -> None:
    opened = Opened()

    async def read() -> None:
        async with watch(FakeMachine(), packs=[QUICK], bus=opened) as documents:
            async for _ in documents:
                pass

    reading = asyncio.create_task(read())
    await until(lambda: opened.broker is not None and opened.broker.pid is not None)
    pid = opened.pid
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert ended(pid, within_s=0.0)


@asynchronous
async def test_alerts_go_on_after_mosquitto_was_killed_and_none_comes_twice() -> None:
    guest = FakeGuest(processes=[INIT])
    opened = Opened()
    messages: list[Message] = []
    async with watch(FakeMachine(guest), packs=[QUICK], bus=opened) as documents:
        for pid in (100, 200, 300):
            guest.show_process_ids([INIT, fake_process(pid)])
            messages.append(await next_of_kind(documents, "alert"))
            opened.kill()
            guest.show_process_ids([INIT])
            messages.append(await next_of_kind(documents, "cleared"))
    pids = [one.read_body(Alert).finding.evidence[0].facts["pid"] for one in messages]
    assert pids == [100, 100, 200, 200, 300, 300]


@asynchronous
async def test_an_alert_that_mosquitto_took_with_it_arrives_all_the_same() -> None:
    guest = FakeGuest(processes=[INIT])
    opened = Opened()
    async with watch(FakeMachine(guest), packs=[QUICK], bus=opened) as documents:
        await next_of_kind(documents, "status")
        await until(lambda: len(guest.calls) >= 6)  # the look after the one that made the status
        os.kill(opened.pid, signal.SIGSTOP)  # it takes the publish, and answers nobody
        guest.show_process_ids([INIT, EVIL])
        await until(lambda: "alert" in opened.given)
        opened.kill()
        assert "666" in (await next_of_kind(documents, "alert")).read_body(Alert).finding.claim


@asynchronous
async def test_a_mosquitto_that_hangs_is_replaced_and_alerts_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.bus.mqtt.ANSWER_TIMEOUT_S", 0.5)
    guest = FakeGuest(processes=[INIT])
    opened = Opened()
    async with watch(FakeMachine(guest), packs=[QUICK], bus=opened) as documents:
        await next_of_kind(documents, "status")
        hung = opened.pid
        os.kill(hung, signal.SIGSTOP)
        guest.show_process_ids([INIT, EVIL])
        assert "666" in (await next_of_kind(documents, "alert")).read_body(Alert).finding.claim
        assert ended(hung)


class OftenGone:
    """Opens a bus to which the first attempts to connect fail.

    Args:
        failures: what each of them says.
    """

    def __init__(self, *failures: str) -> None:
        self.failures = list(failures)

    @asynccontextmanager
    async def __call__(self, accounts: Sequence[Account]) -> AsyncIterator[Channel]:
        async with in_process(accounts) as self.channel:
            yield self

    async def connect(self, account: Account, *, will: Message | None = None) -> Bus:
        if self.failures:
            raise BrokerUnavailable(self.failures.pop(0))
        return await self.channel.connect(account, will=will)


@asynchronous
async def test_a_bus_that_is_lost_is_told_of_once_and_again_when_that_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = OftenGone("refused", "refused", "late")
    async with watch(with_a_hidden_process(), packs=[QUICK], bus=bus) as documents:
        await next_of_kind(documents, "alert")
    told = [text for text in caplog.messages if "the bus" in text]
    assert told == ["the bus is lost: refused", "the bus is lost: late", "the bus is there again"]


@asynchronous
async def test_a_mosquitto_that_ends_again_and_again_is_an_error_in_the_end() -> None:
    opened = Opened()
    async with watch(FakeMachine(), packs=[QUICK], bus=opened) as documents:

        async def kill() -> None:
            while True:
                opened.kill()
                await asyncio.sleep(0.005)

        killing = asyncio.create_task(kill())
        try:
            with pytest.raises(BusError, match="in a row"):
                await next_of_kind(documents, "never")
        finally:
            killing.cancel()


@every_bus
@asynchronous
async def test_when_the_machine_is_gone_all_is_delivered_before_that_is_raised(
    bus: OpenChannel,
) -> None:
    machine = with_a_hidden_process()
    async with watch(machine, packs=[QUICK], bus=bus) as documents:
        await next_of_kind(documents, "alert")
        machine.fail_next("guest", MachineGone("watch"))
        machine.fail_next("refresh", MachineGone("watch"))
        last = await next_of_kind(documents, "status")
        assert last.read_body(Status).sight is Sight.ENDED
        for _ in range(2):
            with pytest.raises(MachineGone):
                await anext(documents)


@asynchronous
async def test_an_error_that_nobody_expected_comes_out_of_the_iteration() -> None:
    machine = FakeMachine()
    machine.fail_next("guest", LookupError("a bug"))
    async with watch(machine, packs=[QUICK], bus=in_process) as documents:
        with pytest.raises(LookupError, match="a bug"):
            await next_of_kind(documents, "never")


@asynchronous
async def test_messages_that_a_slow_reader_lost_are_counted_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.codepacks.alert_budget.BURST", 1_000_000)
    guest = FakeGuest(processes=[INIT])
    looks = 0

    def inspect(seen: GuestOS, _: PhysicalMemory) -> Iterable[Finding]:
        nonlocal looks
        looks += 1
        seen.processes()
        keys = range(looks // 2 * 100, looks // 2 * 100 + 100)
        return [finding(str(key)) for key in keys]

    pack = ScriptedPack(inspect)
    async with watch(FakeMachine(guest), packs=[pack], bus=in_process) as documents:
        await until(lambda: looks >= 2 * MAX_WAITING_MESSAGES // 100 + 10)
        told = await next_of_kind(documents, "status")
        while told.codepack != "watch":
            told = await next_of_kind(documents, "status")
    status = told.read_body(Status)
    assert status.sight is Sight.GAPS
    assert status.lost > 0
    assert "reader was slow" in status.problem


@asynchronous
async def test_without_mosquitto_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("qvmi.bus.broker._SYSTEM_FOLDERS", ())
    with pytest.raises(BrokerUnavailable, match="apt install mosquitto"):
        async with watch(FakeMachine(), packs=[QUICK]):
            raise AssertionError("it watches")


@pytest.mark.parametrize(
    ("packs", "error"),
    [
        ([], UsageError),
        ([QUICK, QUICK], UsageError),
        ([ScriptedPack(name="watch")], UsageError),
        ([ScriptedPack(name="a/b")], CodepackError),
        ([ScriptedPack(name="#")], CodepackError),
        ([ScriptedPack(name="")], CodepackError),
        ([ScriptedPack(interval_s=0.0)], CodepackError),
        ([ScriptedPack(interval_s=-1.0)], CodepackError),
        ([ScriptedPack(interval_s=float("nan"))], CodepackError),
        ([ScriptedPack(interval_s=float("inf"))], CodepackError),
        ([ScriptedPack(grants=frozenset({Grant.WRITE}))], PolicyDenied),
    ],
)
@asynchronous
async def test_refuses_codepacks_that_cannot_be_run(
    packs: Sequence[Codepack], error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with watch(FakeMachine(), packs=packs, bus=in_process):
            raise AssertionError("it watches")


class Failing:
    """A codepack that fails in some looks, and counts them."""

    grants = frozenset({Grant.READ_MEMORY})
    interval_s = 0.005

    def __init__(self, name: str, fails: Sequence[bool]) -> None:
        self.name = name
        self.looks = 0
        self._fails = fails

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding]:
        del guest, memory
        self.looks += 1
        if self._fails[min(self.looks, len(self._fails)) - 1]:
            raise ZeroDivisionError
        return []


@pytest.mark.parametrize(
    ("management", "fails", "looks"),
    [
        (Management(restart=Restart.NEVER), [True], 1),
        (Management(restart=Restart.NEVER), [False, False, True], 3),
        (Management(max_restarts=2), [True], 3),
        (Management(restart=Restart.ALWAYS, max_restarts=2), [True, True, False, True], 6),
    ],
)
@every_bus
@asynchronous
async def test_a_codepack_that_fails_as_often_as_its_manifest_says_is_given_up_and_told_of(
    bus: OpenChannel, management: Management, fails: Sequence[bool], looks: int
) -> None:
    failing = Failing("failing", fails)
    limits = {"failing": management}
    machine = FakeMachine(FakeGuest(processes=[INIT]))
    async with (
        asyncio.timeout(60.0),
        watch(machine, packs=[failing], bus=bus, management=limits) as documents,
    ):
        told = [Status(sight=Sight.FULL)]

        async def read() -> None:
            async for message in documents:
                told.append(message.read_body(Status))  # noqa: PERF401 - what came before the error counts

        with pytest.raises(CodepackError, match="failing: given up, as it failed"):
            await read()
    assert failing.looks == looks
    last = told[-1]
    assert last.sight is Sight.FAILED
    assert "ZeroDivisionError" in last.problem
    assert "given up" in last.problem


@asynchronous
async def test_others_go_on_when_a_codepack_is_given_up() -> None:
    packs = [Failing("failing", [True]), Failing("well", [False])]
    limits = {"failing": Management(restart=Restart.NEVER)}
    machine = FakeMachine(FakeGuest(processes=[INIT]))
    async with watch(machine, packs=packs, bus=in_process, management=limits):
        await until(lambda: packs[0].looks == 1)
        before = packs[1].looks
        await until(lambda: packs[1].looks > before + 3)
    assert packs[0].looks == 1


@asynchronous
async def test_a_guest_that_gives_more_to_find_than_is_taken_puts_no_codepack_out() -> None:
    hidden = [fake_process(number, name="x") for number in range(2, MAX_FINDINGS + 3)]
    machine = FakeMachine(FakeGuest(processes=[INIT], process_ids=[INIT, *hidden]))
    limits = {QUICK.name: Management(restart=Restart.NEVER)}
    async with (
        asyncio.timeout(60.0),
        watch(machine, packs=[QUICK], bus=in_process, management=limits) as documents,
    ):
        async for message in documents:
            if message.kind == "alert":
                break
            status = message.read_body(Status)
    assert status.sight is Sight.GAPS
    assert [gap.structure for gap in status.gaps] == ["findings"]


@pytest.mark.parametrize("kind", ["receipt", "machine", "request"])
@asynchronous
async def test_a_codepack_can_say_what_codepacks_say_and_ask_nobody(kind: str) -> None:
    opened = Opened()
    accounts: list[Account] = []

    @asynccontextmanager
    async def noted(given: Sequence[Account]) -> AsyncIterator[Channel]:
        accounts.extend(given)
        async with opened(given) as channel:
            yield channel

    async with watch(FakeMachine(FakeGuest(processes=[INIT])), packs=[QUICK], vm="web", bus=noted):
        assert opened.broker is not None
        (own,) = (one for one in accounts if one.name == f"web.{QUICK.name}")
        peer = "/manager" if kind == "request" else ""
        topic = f"qvmi/v1/web/{QUICK.name}/{kind}{peer}".encode()
        refused = publish_raw(opened.broker.socket, own, topic, b"{}")
        allowed = f"qvmi/v1/web/{QUICK.name}/finding".encode()
        assert refused[4:5] == bytes([NOT_AUTHORIZED])
        assert publish_raw(opened.broker.socket, own, allowed, b"{}")[:1] == b"\x40"
        assert NOT_AUTHORIZED not in publish_raw(opened.broker.socket, own, allowed, b"{}")[4:]


@asynchronous
async def test_a_policy_can_forbid_even_reading() -> None:
    nothing = Policy(frozenset())
    with pytest.raises(PolicyDenied, match="hidden-processes"):
        async with watch(FakeMachine(), packs=[QUICK], bus=in_process, policy=nothing):
            raise AssertionError("it watches")
