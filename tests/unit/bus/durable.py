"""Programs that are killed: a sender with an outbox, and consumers with inboxes.

Run as ``python -m tests.unit.bus.durable send|consume FOLDER``; what they are to do stands in ``task.json``
of that folder.
"""

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from qvmi.bus.account import Account
from qvmi.bus.inbox import Inbox
from qvmi.bus.ledger import Transaction
from qvmi.bus.message import Message
from qvmi.bus.mqtt import MqttChannel
from qvmi.bus.outbox import Outbox

__all__ = ["KIND", "SENDER", "VM", "accounts", "alert", "handled"]

VM: Final = "web"
SENDER: Final = "pack"
KIND: Final = "alert"
_EFFECTS: Final = "CREATE TABLE IF NOT EXISTS effect (id TEXT NOT NULL)"


def accounts(consumers: Iterable[str]) -> dict[str, Account]:
    """These are the accounts of a sender and its consumers, by their names."""
    names = tuple(consumers)
    sender = {SENDER: Account.of_sender(VM, SENDER, names)}
    return sender | {name: Account.of_consumer(VM, name) for name in names}


def alert(name: str, **body: object) -> Message:
    """This is a message with an id of its own."""
    return Message(id=name, vm=VM, codepack=SENDER, kind=KIND, time=time.time(), body=body)


def note(message: Message, database: Transaction) -> None:
    """This is a handler whose effect can be counted: it notes a message each time that it runs."""
    database.execute("INSERT INTO effect VALUES (?)", (message.id,))


def handled(folder: Path, consumer: str) -> list[str]:
    """These are the ids that a consumer's handler has noted, in that order; the consumer has ended."""
    with contextlib.closing(sqlite3.connect(folder / f"{consumer}.db")) as database:
        return [name for (name,) in database.execute("SELECT id FROM effect ORDER BY rowid")]


async def send(folder: Path, task: dict[str, Any], secret: str) -> None:
    """This publishes message after message until a file says that it is enough, and delivers them."""
    consumers = task["consumers"]
    account = Account(
        f"{VM}.{SENDER}",
        accounts(consumers)[SENDER].publishes,
        accounts(consumers)[SENDER].reads,
        secret,
    )
    outbox = await Outbox.open(folder / "outbox.db", account, vm=VM, consumers=consumers)
    delivering = asyncio.create_task(outbox.deliver(MqttChannel(Path(task["socket"]))))
    accepted = folder / "accepted"
    number = len(accepted.read_text().splitlines()) if accepted.exists() else 0
    with accepted.open("a") as log:
        while not (folder / "enough").exists():
            await outbox.publish(alert(f"m{number}"))
            print(f"m{number}", file=log, flush=True)
            number += 1
            await asyncio.sleep(0.001)
    await outbox.delivered()
    delivering.cancel()
    await outbox.close()


async def consume(folder: Path, task: dict[str, Any], name: str, secret: str) -> None:
    """This handles messages until it is killed."""
    model = accounts(task["consumers"])[name]
    account = Account(model.name, model.publishes, model.reads, secret)
    inbox = await Inbox.open(folder / f"{name}.db", account, vm=VM, name=name, tables=[_EFFECTS])
    await inbox.consume(MqttChannel(Path(task["socket"])), [KIND], note)


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    task = json.loads((folder / "task.json").read_text())
    secret = task["secrets"][name]
    if name == SENDER:
        asyncio.run(send(folder, task, secret))
    else:
        asyncio.run(consume(folder, task, name, secret))


if __name__ == "__main__":
    main()
