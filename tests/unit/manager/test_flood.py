"""A codepack that floods the bus is put out for a while, and told of; the others go on to be heard."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qvmi.audit import AuditLog
from qvmi.bus.account import Account
from qvmi.bus.broker import Broker, mosquitto
from qvmi.bus.inbox import Inbox
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.bus.outbox import Outbox
from qvmi.bus.subscription import MAX_WAITING_MESSAGES
from qvmi.bus.throttle import Throttle
from qvmi.bus.topic import TopicFilter
from qvmi.codepacks.codepack import Codepack, Finding
from qvmi.codepacks.detectors.hidden_processes import HiddenProcesses
from qvmi.codepacks.status import Sight, Status
from qvmi.manager.accounts import throttle_account
from qvmi.manager.status_reader import MAX_STATUSES, StatusReader
from qvmi.manager.watch import Watch, watch
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import GuestOS
from qvmi.testing import FakeGuest, FakeMachine, fake_process
from tests.asynchronous import asynchronous, until
from tests.unit.bus.raw_mqtt import NOT_AUTHORIZED, greet_raw
from tests.unit.codepacks.packs import ScriptedPack, finding

INIT, EVIL = fake_process(1, name="init"), fake_process(666, name="evil")
LISTENER = Account.of_reader("listener", TopicFilter())
WAIT_S = 120.0


class Flood:
    """Findings by the hundred, each confirmed by the look after it, until it is stopped."""

    def __init__(self) -> None:
        self.on = True
        self.looks = 0

    def __call__(self, _: GuestOS, __: PhysicalMemory) -> Iterable[Finding]:
        first = self.looks // 2 * 100
        self.looks += 1
        return [finding(str(key)) for key in range(first, first + 100)] if self.on else []


class Opened:
    """A mosquitto that lets one more account in, and tells a test of those that it was opened for."""

    broker: Broker
    accounts: Sequence[Account]

    @asynccontextmanager
    async def __call__(self, accounts: Sequence[Account]) -> AsyncIterator[Broker]:
        self.accounts = accounts
        async with mosquitto([*accounts, LISTENER]) as self.broker:
            yield self.broker

    def account(self, name: str) -> Account:
        return next(one for one in self.accounts if one.name == name)


async def status_of(documents: Watch, codepack: str, words: str) -> Status:
    async for message in documents:
        if message.kind == "status" and message.codepack == codepack:
            status = message.read_body(Status)
            if words in status.problem:
                return status
    raise AssertionError(f"ended without {words}")


async def alert_of(documents: Watch, codepack: str) -> Message:
    async for message in documents:
        if (message.kind, message.codepack) == ("alert", codepack):
            return message
    raise AssertionError("ended without an alert")


@asynchronous
async def test_a_codepack_that_floods_is_put_out_for_a_while_and_others_are_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("qvmi.bus.throttle.MAX_PER_S", 100)
    monkeypatch.setattr("qvmi.bus.throttle.PENALTY_S", 3.0)
    monkeypatch.setattr("qvmi.codepacks.alert_budget.BURST", 1_000_000)
    monkeypatch.setattr("qvmi.bus.throttle.PATIENT_SHARE", 0.6)
    guest, flood, opened = FakeGuest(processes=[INIT], process_ids=[INIT]), Flood(), Opened()
    packs: list[Codepack] = [ScriptedPack(flood), HiddenProcesses(interval_s=0.05)]
    async with asyncio.timeout(WAIT_S):
        with AuditLog(tmp_path / "audit.log"):
            async with watch(FakeMachine(guest), packs=packs, bus=opened, vm="web") as documents:
                told = await status_of(documents, "watch", "published more than 100 messages")
                assert told.problem.startswith("codepack scripted ")
                flooder = opened.account("web.scripted")
                await until(lambda: greet_raw(opened.broker.socket, flooder) == NOT_AUTHORIZED)
                flood.on = False
                guest.show_process_ids([INIT, EVIL])
                await alert_of(documents, "hidden-processes")
                await status_of(documents, "watch", "scripted is let in again")
                await status_of(documents, "scripted", "")
                assert documents.throttle is not None
                assert set(documents.throttle.suspended) == {"web.scripted"}
                assert opened.broker.starts == 1
    audited = (tmp_path / "audit.log").read_text()
    assert "throttled on the bus: web.scripted" in audited
    assert "to be retained" not in audited, "whoever counts must not accuse what is as it should be"


async def heard_by_mosquitto_sub(broker: Broker, topic: str) -> dict[str, object]:
    """This is the first message that mosquitto's own client hears at a topic."""
    process = await asyncio.create_subprocess_exec(
        *("mosquitto_sub", "--unix", str(broker.socket), "-V", "5", "-q", "1", "-C", "1"),
        *("-u", LISTENER.name, "-P", LISTENER.secret, "-t", topic),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    message: dict[str, object] = json.loads(output)
    return message


@asynchronous
async def test_what_a_slow_reader_lost_is_told_to_everybody_on_the_bus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.bus.throttle.MAX_PER_S", 1_000_000)
    monkeypatch.setattr("qvmi.codepacks.alert_budget.BURST", 1_000_000)
    opened = Opened()
    packs: list[Codepack] = [ScriptedPack(Flood())]
    async with (
        asyncio.timeout(WAIT_S),
        watch(FakeMachine(), packs=packs, bus=opened, vm="web") as documents,
    ):
        # Nobody iterates: what is too much is dropped.
        message = await heard_by_mosquitto_sub(opened.broker, "qvmi/v1/web/watch/status")
        body = message["body"]
        assert isinstance(body, dict)
        assert (body["sight"], body["lost"] > 0) == ("gaps", True)
        assert "reader was slow" in body["problem"]
        assert documents.vm == "web"


@asynchronous
async def test_a_loss_is_told_here_and_there_and_not_twice_to_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.manager.watch.TELL_S", 0.01)
    monkeypatch.setattr("qvmi.codepacks.alert_budget.BURST", 1_000_000)
    flood = Flood()
    looks = 2 * MAX_WAITING_MESSAGES // 100 + 10
    pack = ScriptedPack(flood)
    async with (
        asyncio.timeout(WAIT_S),
        watch(FakeMachine(), packs=[pack], bus=in_process, vm="web") as documents,
    ):
        await until(lambda: flood.looks > looks)
        flood.on = False
        ids: list[str] = []
        lost = 0
        while not lost or len(ids) < MAX_WAITING_MESSAGES:
            message = await anext(documents)
            ids.append(message.id)
            if message.codepack == "watch":
                status = message.read_body(Status)
                assert status.sight is Sight.GAPS
                lost = max(lost, status.lost)
    assert len(set(ids)) == len(ids)
    assert lost > 0


@asynchronous
async def test_what_waited_in_an_outbox_for_long_is_sent_so_that_it_is_no_flood(
    tmp_path: Path,
) -> None:
    count = 500
    sender = Account.of_sender("web", "pack", ["log"])
    consumer, counting = Account.of_consumer("web", "log"), throttle_account()
    async with asyncio.timeout(WAIT_S), mosquitto([sender, consumer, counting]) as broker:
        outbox = await Outbox.open(
            tmp_path / "outbox.db", sender, vm="web", consumers=["log"], max_per_s=100
        )
        inbox = await Inbox.open(tmp_path / "inbox.db", consumer, vm="web", name="log")
        for number in range(count):
            body: dict[str, object] = {"number": number}
            await outbox.publish(
                Message(vm="web", codepack="pack", kind="alert", time=0.0, body=body)
            )
        throttle = Throttle(broker, counting, [sender], max_per_s=400)
        work = (
            throttle.keep(broker),
            outbox.deliver(broker),
            inbox.consume(broker, ["alert"], lambda *_: None),
        )
        tasks = [asyncio.create_task(one) for one in work]
        await outbox.delivered()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await outbox.close()
        await inbox.close()
    assert inbox.handled == count
    assert not throttle.suspended


@asynchronous
async def test_statuses_that_the_manager_had_no_room_for_are_counted_and_told() -> None:
    count = 3 * MAX_STATUSES
    reader = StatusReader("web", asyncio.Event())
    sender = Account.of_codepack("web", "pack")
    told: asyncio.Queue[Status] = asyncio.Queue()
    async with asyncio.timeout(WAIT_S), in_process([reader.account, sender]) as channel:
        tasks = [
            asyncio.create_task(reader.run(channel)),
            asyncio.create_task(reader.tell_losses(told.put)),
        ]
        bus = await channel.connect(sender)
        await until(lambda: bool(channel.subscriptions()))
        for number in range(count):
            body: dict[str, object] = {"sight": "full", "rounds": number}
            await bus.publish(
                Message(vm="web", codepack="pack", kind="status", time=0.0, body=body)
            )
        lost = 0
        while lost < count - MAX_STATUSES:
            status = await told.get()
            lost = status.lost
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert lost == count - MAX_STATUSES
    assert reader.arrived[-1].body["rounds"] == count - 1
    assert status.sight is Sight.GAPS
