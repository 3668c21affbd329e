"""What an outbox has accepted is handled once by each consumer, whoever ends or is killed meanwhile."""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import pytest

from qvmi.audit import LOGGER
from qvmi.bus import broker as brokers
from qvmi.bus import inbox as inboxes
from qvmi.bus.account import Account
from qvmi.bus.broker import mosquitto
from qvmi.bus.bus import Channel, OpenChannel
from qvmi.bus.inbox import Handler, Inbox
from qvmi.bus.ledger import Transaction
from qvmi.bus.local import in_process
from qvmi.bus.message import MAX_MESSAGE_BYTES, Message
from qvmi.bus.outbox import MAX_LIFETIME_S, WINDOW, Outbox
from qvmi.bus.receipt import Receipt
from qvmi.errors import BadMessage, BusRefused, InboxFull, LedgerFailed, OutboxFull, UsageError
from tests.asynchronous import asynchronous, until
from tests.proofs import proof_size
from tests.unit.bus.durable import KIND, SENDER, VM, accounts, alert, handled

every_bus = pytest.mark.parametrize(
    "channel_of", [pytest.param(in_process, id="local"), pytest.param(mosquitto, id="mqtt")]
)
ENDS_S = 60.0
"""Longest wait for the end of a delivery that takes a second on an idle machine."""


@asynccontextmanager
async def sending(
    folder: Path, account: Account, channel: Channel | None, consumers: Sequence[str] = ("log",)
) -> AsyncIterator[Outbox]:
    """This is an open outbox; one without a channel keeps what it is given."""
    outbox = await Outbox.open(folder / "outbox.db", account, vm=VM, consumers=consumers)
    delivering = asyncio.create_task(outbox.deliver(channel)) if channel else None
    try:
        yield outbox
    finally:
        if delivering is not None:
            delivering.cancel()
            await asyncio.wait([delivering])
        await outbox.close()


@asynccontextmanager
async def consuming(
    folder: Path, account: Account, channel: Channel, handle: Handler, name: str = "log"
) -> AsyncIterator[Inbox]:
    """This is an open inbox that handles what comes."""
    inbox = await Inbox.open(folder / f"{name}.db", account, vm=VM, name=name)
    consuming = asyncio.create_task(inbox.consume(channel, [KIND], handle))
    try:
        yield inbox
    finally:
        consuming.cancel()
        await asyncio.wait([consuming])
        await inbox.close()


def taking(into: list[Message]) -> Handler:
    def take(message: Message, _: Transaction) -> None:
        into.append(message)

    return take


async def delivered(outbox: Outbox) -> None:
    async with asyncio.timeout(ENDS_S):
        await outbox.delivered()


# ------------------------------------------------------------------------------------------- delivery


@every_bus
@asynchronous
async def test_what_was_published_before_the_consumer_came_arrives_whole_and_in_order(
    channel_of: OpenChannel, tmp_path: Path
) -> None:
    known = accounts(["log"])
    sent = [alert(f"m{number}", number=number) for number in range(2 * WINDOW)]
    arrived: list[Message] = []
    async with (
        channel_of(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
    ):
        for message in sent:
            await outbox.publish(message)
        assert outbox.held == len(sent)
        async with consuming(tmp_path, known["log"], channel, taking(arrived)) as inbox:
            await delivered(outbox)
            assert inbox.handled == len(sent)
    assert arrived == sent


@every_bus
@asynchronous
async def test_each_consumer_handles_each_message_once(
    channel_of: OpenChannel, tmp_path: Path
) -> None:
    known = accounts(["log", "manager"])
    log: list[Message] = []
    manager: list[Message] = []
    async with (
        channel_of(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel, ["log", "manager"]) as outbox,
        consuming(tmp_path, known["log"], channel, taking(log)),
    ):
        first, second = alert("first"), alert("second")
        await outbox.publish(first)
        await until(lambda: bool(log))
        assert outbox.held == 1  # the other one has not come yet
        handling = taking(manager)
        async with consuming(tmp_path, known["manager"], channel, handling, "manager"):
            await outbox.publish(second)
            await delivered(outbox)
    assert log == [first, second]
    # What it missed and what is new reach it by different ways.
    assert sorted(message.id for message in manager) == ["first", "second"]


@every_bus
@asynchronous
async def test_a_message_that_is_published_again_is_not_handled_again(
    channel_of: OpenChannel, tmp_path: Path
) -> None:
    known = accounts(["log"])
    arrived: list[Message] = []
    async with (
        channel_of(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
        consuming(tmp_path, known["log"], channel, taking(arrived)) as inbox,
    ):
        once = alert("once")
        for _ in range(2):
            await outbox.publish(once)
            await outbox.publish(once)
            await delivered(outbox)
        assert inbox.repeated >= 1
    assert arrived == [once]


@asynchronous
async def test_an_outbox_that_is_opened_again_delivers_what_it_held(tmp_path: Path) -> None:
    known = accounts(["log"])
    sent = alert("kept")
    arrived: list[Message] = []
    async with sending(tmp_path, known[SENDER], None) as outbox:
        await outbox.publish(sent)
    async with (
        in_process(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
        consuming(tmp_path, known["log"], channel, taking(arrived)),
    ):
        await delivered(outbox)
    assert arrived == [sent]


@asynchronous
async def test_what_a_handler_raises_is_counted_and_the_message_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvmi.bus.outbox.RESEND_S", 0.05)
    known = accounts(["log"])
    arrived: list[str] = []

    def handle(message: Message, _: Transaction) -> None:
        arrived.append(message.id)
        if arrived.count(message.id) == 1:
            raise ZeroDivisionError

    async with (
        in_process(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
        consuming(tmp_path, known["log"], channel, handle) as inbox,
    ):
        await outbox.publish(alert("first"))
        await until(lambda: "first" in arrived)
        await outbox.publish(alert("second"))  # its receipts say that somebody is there
        await delivered(outbox)
        assert (inbox.failed, inbox.handled) == (2, 2)


@pytest.mark.parametrize(("raised", "refused"), [(InboxFull, True), (OutboxFull, False)])
@asynchronous
async def test_a_speaker_is_refused_where_the_inbox_has_no_room_and_not_where_another_outbox_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, raised: type[Exception], *, refused: bool
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    known = accounts(["log"])

    def handle(_: Message, __: Transaction) -> None:
        raise raised("no room")

    async with (
        in_process(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
        consuming(tmp_path, known["log"], channel, handle) as inbox,
    ):
        await outbox.publish(alert("first"))
        await until(lambda: bool(inbox.failed))
    told = f"refused on the bus: {VM}.{SENDER}, 1 until now: no room" in caplog.messages
    failed = any(record.exc_info for record in caplog.records)
    assert (told, failed) == (refused, not refused)


@asynchronous
async def test_what_a_handler_noted_before_it_raised_is_undone(tmp_path: Path) -> None:
    known = accounts(["log"])

    def handle(message: Message, database: Transaction) -> None:
        database.execute("CREATE TABLE IF NOT EXISTS effect (id TEXT NOT NULL)")
        database.execute("INSERT INTO effect VALUES (?)", (message.id,))
        if message.id == "bad":
            raise ZeroDivisionError

    async with (
        in_process(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
        consuming(tmp_path, known["log"], channel, handle) as inbox,
    ):
        await outbox.publish(alert("good"))
        await outbox.publish(alert("bad"))
        await until(lambda: bool(inbox.failed) and bool(inbox.handled))
    assert handled(tmp_path, "log") == ["good"]


# --------------------------------------------------------------------------------------------- refusals


@asynchronous
async def test_a_full_outbox_refuses_and_keeps_what_it_has(tmp_path: Path) -> None:
    account = accounts(["log"])[SENDER]
    outbox = await Outbox.open(
        tmp_path / "outbox.db", account, vm=VM, consumers=["log"], max_messages=2
    )
    await outbox.publish(alert("first"))
    await outbox.publish(alert("second"))
    with pytest.raises(OutboxFull, match="2 messages wait for a receipt; are the consumers log"):
        await outbox.publish(alert("third"))
    assert outbox.held == 2
    await outbox.close()


@asynchronous
async def test_what_cannot_be_delivered_is_refused_at_once(tmp_path: Path) -> None:
    account = accounts(["log"])[SENDER]
    async with sending(tmp_path, account, None) as outbox:
        stranger = Message(vm=VM, codepack="other", kind=KIND, time=0.0, body={})
        with pytest.raises(BusRefused, match="qvmi/v1/web/other/alert"):
            await outbox.publish(stranger)
        with pytest.raises(BadMessage):
            await outbox.publish(alert("long", text="x" * MAX_MESSAGE_BYTES))
        assert outbox.held == 0


@pytest.mark.parametrize(
    ("consumers", "lifetime_s"),
    [
        ([], 1.0),
        (["Log"], 1.0),
        (["log"], 0.0),
        (["log"], 2 * MAX_LIFETIME_S),
        (["log"], float("nan")),
    ],
)
@asynchronous
async def test_an_outbox_that_cannot_work_is_refused(
    tmp_path: Path, consumers: list[str], lifetime_s: float
) -> None:
    account = accounts(["log"])[SENDER]
    with pytest.raises(UsageError):
        await Outbox.open(
            tmp_path / "outbox.db", account, vm=VM, consumers=consumers, lifetime_s=lifetime_s
        )


@asynchronous
async def test_a_message_that_nobody_comes_for_is_given_up_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvmi.bus.outbox.RESEND_S", 0.05)
    known = accounts(["log"])
    outbox = await Outbox.open(
        tmp_path / "outbox.db", known[SENDER], vm=VM, consumers=["log"], lifetime_s=0.01
    )
    await outbox.publish(alert("late"))
    async with in_process(list(known.values())) as channel:
        delivering = asyncio.create_task(outbox.deliver(channel))
        await delivered(outbox)
        delivering.cancel()
        await asyncio.wait([delivering])
    assert (outbox.expired, outbox.held) == (1, 0)
    await outbox.close()


@asynchronous
async def test_an_inbox_that_is_never_closed_forgets_what_is_not_sent_again_and_nothing_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inboxes, "MAX_REMEMBERED", 8)
    monkeypatch.setattr(inboxes, "FORGET_EVERY", 4)
    known = accounts(["log"])
    arrived: list[Message] = []
    async with (
        in_process(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
        consuming(tmp_path, known["log"], channel, taking(arrived)) as inbox,
    ):
        for number in range(40):
            await outbox.publish(alert(f"m{number:02}"))
        await delivered(outbox)
        assert await remembered(inbox) == [f"m{number}" for number in range(32, 40)]
        await inbox.ask(lambda database: database.execute("UPDATE handled SET at = 0"))
        for number in range(40, 44):
            await outbox.publish(alert(f"m{number}"))
        await delivered(outbox)
        assert await remembered(inbox) == [f"m{number}" for number in range(40, 44)]
        await outbox.publish(alert("m43"))
        await delivered(outbox)
        assert (inbox.handled, inbox.repeated) == (44, 1)
    monkeypatch.setattr(inboxes, "MAX_REMEMBERED", 2)
    again = await Inbox.open(tmp_path / "log.db", known["log"], vm=VM, name="log")
    assert await remembered(again) == ["m42", "m43"]
    await again.close()


async def remembered(inbox: Inbox) -> list[str]:
    rows = await inbox.ask(lambda database: list(database.execute("SELECT id FROM handled")))
    return sorted(name for (name,) in rows)


@asynchronous
async def test_a_database_has_one_program_at_a_time(tmp_path: Path) -> None:
    account = accounts(["log"])[SENDER]
    async with sending(tmp_path, account, None):
        with pytest.raises(LedgerFailed, match="another program has it"):
            await Outbox.open(tmp_path / "outbox.db", account, vm=VM, consumers=["log"])


@pytest.mark.parametrize(
    "content", [b"not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4096]
)
@asynchronous
async def test_a_file_that_is_no_database_is_named_and_left_as_it_is(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "outbox.db"
    file.write_bytes(content)
    with pytest.raises(LedgerFailed, match=r"outbox\.db: .*move the file away"):
        await Outbox.open(file, accounts(["log"])[SENDER], vm=VM, consumers=["log"])
    assert file.read_bytes() == content


@asynchronous
async def test_a_database_is_its_owners_alone(tmp_path: Path) -> None:
    async with sending(tmp_path, accounts(["log"])[SENDER], None) as outbox:
        await outbox.publish(alert("secret"))
        modes = {file.name: file.stat().st_mode & 0o777 for file in os.scandir(tmp_path)}
    assert modes["outbox.db"] == 0o600
    assert set(modes.values()) == {0o600}


@asynchronous
async def test_a_full_disk_refuses_a_message_and_spares_the_others(tmp_path: Path) -> None:
    account = accounts(["log"])[SENDER]
    async with sending(tmp_path, account, None) as outbox:
        await outbox.publish(alert("first"))
        await outbox._ledger.do(lambda database: database.execute("PRAGMA max_page_count = 1"))  # noqa: SLF001 - SQLite's own way to be full
        with pytest.raises(LedgerFailed, match="full"):
            await asyncio.gather(
                *(outbox.publish(alert(f"m{n}", text="x" * 9999)) for n in range(99))
            )
        held = outbox.held
    async with sending(tmp_path, account, None) as again:
        assert again.held == held


# --------------------------------------------------------------------------------- hostile neighbours


@every_bus
@asynchronous
async def test_nobody_gives_receipts_for_another_consumer(
    channel_of: OpenChannel, tmp_path: Path
) -> None:
    known = accounts(["log", "manager"])
    async with (
        channel_of(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel, ["log", "manager"]) as outbox,
    ):
        await outbox.publish(alert("m"))
        manager = await channel.connect(known["manager"])
        forged = Receipt(SENDER, ("m",))
        with pytest.raises(BusRefused):
            await manager.publish(forged.message(vm=VM, consumer="log"))
        own = forged.message(vm=VM, consumer="manager")
        await manager.publish(own)
        await manager.publish(own)
        await manager.close()
        async with consuming(tmp_path, known["log"], channel, taking([])):
            await delivered(outbox)  # only now: the forged one has settled nothing


@asynchronous
async def test_another_speakers_id_does_not_make_a_message_look_handled(tmp_path: Path) -> None:
    known = accounts(["log"])
    hostile = Account.of_codepack(VM, "hostile")
    arrived: list[Message] = []
    async with (
        in_process([*known.values(), hostile]) as channel,
        consuming(tmp_path, known["log"], channel, taking(arrived)) as inbox,
    ):
        await until(lambda: bool(channel.subscriptions()))
        bus = await channel.connect(hostile)
        fake = Message(id="m", vm=VM, codepack="hostile", kind=KIND, time=0.0, body={})
        await bus.publish(fake)
        await until(lambda: inbox.handled == 1)
        async with sending(tmp_path, known[SENDER], channel) as outbox:
            true = alert("m")
            await outbox.publish(true)
            await delivered(outbox)
    assert arrived == [fake, true]


@asynchronous
async def test_receipts_that_are_none_settle_nothing(tmp_path: Path) -> None:
    known = accounts(["log"])
    arrived: list[Message] = []
    async with (
        in_process(list(known.values())) as channel,
        sending(tmp_path, known[SENDER], channel) as outbox,
    ):
        await outbox.publish(alert("m"))
        log = await channel.connect(known["log"])
        for body in ({}, {"to": SENDER, "ids": "m"}, {"to": "other", "ids": ["m"]}, {"ids": ["m"]}):
            words: dict[str, object] = dict(body)
            await log.publish(Message(vm=VM, codepack="log", kind="receipt", time=0.0, body=words))
        await log.close()
        async with consuming(tmp_path, known["log"], channel, taking(arrived)):
            await delivered(outbox)
    assert [message.id for message in arrived] == ["m"]


# --------------------------------------------------------------------------------------------- kill -9


@asynchronous
async def test_no_kill_loses_a_message_or_has_one_handled_twice(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proof_count: Callable[[int], None],
) -> None:
    # It is killed more often here than anybody who has no reason to stop would start it again.
    monkeypatch.setattr(brokers, "MAX_RESTARTS", 1_000_000)
    kills = proof_size(ci=12, full=100)
    consumers = ["log", "manager"]
    known = accounts(consumers)
    chance = random.Random(20261129)
    async with mosquitto(list(known.values())) as broker:
        order(tmp_path, broker.socket, known)
        with Programs(tmp_path, known) as programs:
            for _ in range(kills):
                await asyncio.sleep(chance.uniform(0.2, 0.8))
                victim = chance.choice([*known, "broker"])
                if victim != "broker":
                    programs.kill(victim)
                elif broker.pid is not None:
                    os.kill(broker.pid, signal.SIGKILL)
            await until((tmp_path / "accepted").exists, within_s=ENDS_S)
            (tmp_path / "enough").touch()
            code = await asyncio.to_thread(programs.running[SENDER].wait, ENDS_S)
    assert code == 0
    accepted = (tmp_path / "accepted").read_text().split()
    counts = {name: Counter(handled(tmp_path, name)) for name in consumers}
    assert all(set(its.values()) == {1} for its in counts.values())
    assert all(set(accepted) <= set(its) for its in counts.values())
    proof_count(len(accepted))


def order(folder: Path, socket: Path, known: Mapping[str, Account]) -> None:
    """This tells the programs what they are to do."""
    consumers = [name for name in known if name != SENDER]
    secrets = {name: account.secret for name, account in known.items()}
    task = {"socket": str(socket), "consumers": consumers, "secrets": secrets}
    (folder / "task.json").touch(0o600)
    (folder / "task.json").write_text(json.dumps(task))


class Programs:
    """These are the sender and the consumers, each a program that is started again when it is killed."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = folder
        self._names = tuple(names)

    def __enter__(self) -> Self:
        for name in self._names:
            self._start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            self._end(name)

    def kill(self, name: str) -> None:
        self._end(name)
        self._start(name)

    def _start(self, name: str) -> None:
        command = [sys.executable, "-m", "tests.unit.bus.durable", str(self._folder), name]
        self.running[name] = subprocess.Popen(command)

    def _end(self, name: str) -> None:
        program = self.running.pop(name, None)
        if program is not None:
            program.kill()
            program.wait()


def test_a_database_that_was_killed_in_mid_commit_opens_again(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, pathlib, signal, sys\n"
        "from qvmi.bus.outbox import Outbox\n"
        "from tests.unit.bus.durable import SENDER, VM, accounts, alert\n"
        "async def main():\n"
        "    outbox = await Outbox.open(pathlib.Path(sys.argv[1]), accounts(['log'])[SENDER], vm=VM,"
        " consumers=['log'])\n"
        "    await outbox.publish(alert('first'))\n"
        "    doomed = asyncio.gather(*(outbox.publish(alert(f'm{n}')) for n in range(500)))\n"
        "    await asyncio.sleep(0.002)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    file = tmp_path / "outbox.db"
    ended = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert ended.returncode == -signal.SIGKILL
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = [name for (name,) in database.execute("SELECT id FROM message")]
        owed = database.execute("SELECT count(*) FROM owed").fetchone()
    assert "first" in kept
    assert owed == (len(kept),)
