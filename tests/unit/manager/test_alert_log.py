"""The alerts of all codepacks, one of which says more than anybody reads."""

import asyncio
import logging
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from qvmi.audit import LOGGER
from qvmi.bus.local import in_process
from qvmi.bus.message import Message
from qvmi.manager import alert_log
from qvmi.manager.accounts import consumer_account, outbox_account
from qvmi.manager.alert_log import AlertLog
from tests.asynchronous import asynchronous

VM = "vm"
ROOM = 3
SAID = {"loud": 7, "quiet": 1}


def kept(path: Path) -> dict[str, int]:
    """These are the alerts that wait, by who said them, by SQLite itself."""
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT CAST(data AS TEXT) FROM alert WHERE shown = 0").fetchall()
    return {name: sum(f'"codepack":"{name}"' in row for (row,) in rows) for name in SAID}


@asynchronous
async def test_who_says_more_than_is_read_waits_for_room_and_others_are_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    monkeypatch.setattr(alert_log, "MAX_WAITING", ROOM)
    path = tmp_path / "alerts.db"
    messages = [alert(name, number) for name, count in SAID.items() for number in range(count)]
    await said(path, messages)
    assert kept(path) == {"loud": ROOM, "quiet": 1}
    await said(path, messages)  # again, as an outbox does, and with a log that was opened anew
    assert kept(path) == {"loud": ROOM, "quiet": 1}
    await said(path, messages, shown=2)
    assert kept(path) == {"loud": ROOM, "quiet": 1}, "there is room for as many as were shown"
    assert any("wait to be shown already" in text for text in caplog.messages)


def alert(codepack: str, number: int) -> Message:
    name = f"{codepack}-{number}"
    return Message(vm=VM, codepack=codepack, kind="alert", time=time.time(), id=name, body={})


async def said(path: Path, messages: list[Message], *, shown: int = 0) -> None:
    """Codepacks say something until each was taken in or refused, after some was shown."""
    consumer = consumer_account(VM)
    senders = {name: outbox_account(VM, name) for name in SAID}
    async with in_process([consumer, *senders.values()]) as channel:
        log = await AlertLog.open(path, consumer, vm=VM)
        reading = log.messages()
        for _ in range(shown + 1 if shown else 0):  # one counts when the next is asked for
            await anext(reading)
        consuming = asyncio.create_task(log.consume(channel))
        buses = {name: await channel.connect(account) for name, account in senders.items()}
        while len(channel.subscriptions()) < 2:  # noqa: ASYNC110 - alerts, clearances
            await asyncio.sleep(0)
        for message in messages:
            await buses[message.codepack].publish(message)
        async with asyncio.timeout(20):
            while log.judged < len(messages):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.001)
        consuming.cancel()
        with suppress(asyncio.CancelledError):
            await consuming
        await log.close()
