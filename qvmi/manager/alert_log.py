"""The alerts of all codepacks as the manager has taken them in: each once, and kept until it was shown."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final, Self

from qvmi.bus.account import Account
from qvmi.bus.bus import Channel
from qvmi.bus.inbox import Inbox
from qvmi.bus.ledger import Transaction
from qvmi.bus.message import Message
from qvmi.errors import InboxFull
from qvmi.manager.accounts import ALERTS, DURABLE_KINDS

__all__ = ["AlertLog"]

MAX_SHOWN: Final = 10_000
"""Alerts kept after they were shown, for those who look into the file; the oldest go first."""

MAX_WAITING: Final = 10_000
"""Alerts of one codepack that wait to be shown; further ones stay in its outbox until there is room. Else one
that floods would fill the disk, on which those of all others are kept, too."""

_PAGE: Final = 64
_TABLES: Final = (
    (
        "CREATE TABLE IF NOT EXISTS alert (seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL,"
        " data BLOB NOT NULL, shown INTEGER NOT NULL DEFAULT 0) STRICT"
    ),
    "CREATE INDEX IF NOT EXISTS unshown ON alert (seq) WHERE shown = 0",
    "CREATE TABLE IF NOT EXISTS waiting (codepack TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT",
    # Counted anew, as an older version has not counted.
    "DELETE FROM waiting",
    (
        "INSERT INTO waiting SELECT json_extract(CAST(data AS TEXT), '$.codepack'), count(*)"
        " FROM alert WHERE shown = 0 GROUP BY 1"
    ),
)


class AlertLog:
    """This takes in alerts and gives them out; only :meth:`open` makes one."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def judged(self) -> int:
        """This is how many were taken in, or not, since this was opened."""
        inbox = self._inbox
        return inbox.handled + inbox.repeated + inbox.failed

    @classmethod
    async def open(cls, path: Path, account: Account, *, vm: str) -> Self:
        """This opens the log, with what was taken in and not shown before.

        Raises:
            LedgerFailed: it cannot be used, or another manager has it.
        """
        return cls(await Inbox.open(path, account, vm=vm, name=ALERTS, tables=_TABLES))

    async def consume(self, channel: Channel) -> None:
        """This takes in what outboxes send, until it is cancelled; raises as `Inbox.consume`."""
        await self._inbox.consume(channel, DURABLE_KINDS, self._take)

    async def messages(self) -> AsyncIterator[Message]:
        """This iterates what was not shown yet; one counts as shown when the next is asked for."""
        while True:
            self._news.clear()
            page = await self._inbox.ask(_unshown)
            for seq, data in page:
                message = Message.from_json(data)
                yield message
                await self._inbox.ask(partial(_shown, seq=seq, codepack=message.codepack))
            if not page:
                await self._news.wait()

    async def close(self) -> None:
        """This lets go of the file."""
        await self._inbox.close()

    def _take(self, message: Message, database: Transaction) -> None:
        _require_room(message.codepack, database)
        row = (message.id, message.to_json())
        database.execute("INSERT INTO alert (id, data) VALUES (?, ?)", row)
        self._loop.call_soon_threadsafe(self._news.set)


def _require_room(codepack: str, database: Transaction) -> None:
    """This counts one more that waits; InboxFull where too many do."""
    query = "SELECT count FROM waiting WHERE codepack = ?"
    (count,) = database.execute(query, (codepack,)).fetchone() or (0,)
    if count >= MAX_WAITING:
        raise InboxFull(f"{count} of its alerts wait to be shown already")
    database.execute("INSERT OR REPLACE INTO waiting VALUES (?, ?)", (codepack, count + 1))


def _unshown(database: Transaction) -> list[tuple[int, bytes]]:
    query = "SELECT seq, data FROM alert WHERE shown = 0 ORDER BY seq LIMIT ?"
    return list(database.execute(query, (_PAGE,)))


def _shown(database: Transaction, *, seq: int, codepack: str) -> None:
    database.execute("UPDATE waiting SET count = count - 1 WHERE codepack = ?", (codepack,))
    database.execute("UPDATE alert SET shown = 1 WHERE seq = ?", (seq,))
    database.execute("DELETE FROM alert WHERE shown = 1 AND seq <= ?", (seq - MAX_SHOWN,))
