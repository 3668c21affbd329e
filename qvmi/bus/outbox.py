"""The outbox: messages that are delivered though broker, sender or consumer are killed in between.

A broker's answer to a publish is no promise: mosquitto's lies in its memory. So a message stays in a
database of the sender's until each consumer has given a receipt for it, and is sent again until then.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, NamedTuple, Self

from qvmi.bus.account import Account
from qvmi.bus.bus import Bus, Channel, first_of
from qvmi.bus.ledger import Ledger, Transaction
from qvmi.bus.message import Message
from qvmi.bus.receipt import RECEIPT, Receipt
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import TopicFilter, is_name
from qvmi.errors import (
    BadMessage,
    BusError,
    BusRefused,
    LedgerFailed,
    OutboxFull,
    UsageError,
)

__all__ = ["LIFETIME_S", "MAX_LIFETIME_S", "MAX_PAUSE_S", "Outbox"]

LIFETIME_S: Final = 7 * 86400.0
"""How long a message is kept for a consumer that does not come, unless told otherwise."""

MAX_LIFETIME_S: Final = 28 * 86400.0
"""How long it can be kept: consumers remember for twice as long what they have handled."""

MAX_MESSAGES: Final = 100_000
"""Messages kept unless told otherwise; with alerts of some KiB, a few hundred MiB of disk."""

WINDOW: Final = 256
"""Messages under way for which nobody has given a receipt: a quarter of what a reader's queue holds."""

RESEND_S: Final = 5.0
"""How long a receipt may take; a consumer needs milliseconds."""

MAX_PAUSE_S: Final = 30.0
"""Longest time between two attempts to connect."""

_FIRST_PAUSE_S: Final = 0.05
_PAGE: Final = 64
"""Messages read from the database at a time."""

_TABLES: Final = (
    (
        "CREATE TABLE IF NOT EXISTS message (seq INTEGER PRIMARY KEY AUTOINCREMENT,"
        " id TEXT NOT NULL UNIQUE, data BLOB NOT NULL, expires REAL NOT NULL) STRICT"
    ),
    (
        "CREATE TABLE IF NOT EXISTS owed (seq INTEGER NOT NULL, consumer TEXT NOT NULL,"
        " PRIMARY KEY (seq, consumer)) STRICT, WITHOUT ROWID"
    ),
    # Counted by the database: it counts what is committed, whoever is cancelled meanwhile.
    "CREATE TABLE IF NOT EXISTS held (one INTEGER PRIMARY KEY, count INTEGER NOT NULL) STRICT",
    "INSERT INTO held VALUES (1, 0) ON CONFLICT DO NOTHING",
    (
        "CREATE TRIGGER IF NOT EXISTS kept AFTER INSERT ON message"
        " BEGIN UPDATE held SET count = count + 1; END"
    ),
    (
        "CREATE TRIGGER IF NOT EXISTS gone AFTER DELETE ON message"
        " BEGIN UPDATE held SET count = count - 1; END"
    ),
)
_OWED_TO: Final = (
    "SELECT seq, data FROM message WHERE seq > ? AND EXISTS (SELECT 1 FROM owed WHERE"
    " owed.seq = message.seq AND consumer IN ({})) ORDER BY seq LIMIT ?"
)

_log: Final = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """This is a message as it is kept."""

    seq: int
    data: bytes


class Outbox:
    """This keeps and delivers the messages of one account; only :meth:`open` makes one.

    Attributes:
        expired: messages that were given up since this was opened, as some consumer did not come.
        refused: how often the broker refused one.
    """

    def __init__(
        self,
        ledger: Ledger,
        account: Account,
        receipts: Mapping[str, TopicFilter],
        *,
        lifetime_s: float,
        max_messages: int,
        max_per_s: float,
    ) -> None:
        self.expired = 0
        self.refused = 0
        self._ledger = ledger
        self._account = account
        self._receipts = receipts
        self._lifetime_s = lifetime_s
        self._max_messages = max_messages
        self._max_per_s = max_per_s
        self._held = 0
        self._news = asyncio.Event()
        self._settled = asyncio.Condition()
        self._round = _Round()

    @classmethod
    async def open(  # noqa: PLR0913 - three are bounds that have a default
        cls,
        path: Path,
        account: Account,
        *,
        vm: str,
        consumers: Iterable[str],
        lifetime_s: float = LIFETIME_S,
        max_messages: int = MAX_MESSAGES,
        max_per_s: float = math.inf,
    ) -> Self:
        """This opens an outbox, with what it still holds from before.

        Args:
            path: of its database, which is made if there is none.
            account: who sends; see :meth:`~qvmi.bus.account.Account.of_sender`.
            vm: the watched machine.
            consumers: who must give a receipt before a message is done with.
            lifetime_s: how long a message is kept at most.
            max_messages: how many are.
            max_per_s: how many are sent in a second, where more would count as a flood.

        Raises:
            UsageError: no consumers, one that has no name, or a lifetime that cannot be.
            LedgerFailed: the database cannot be used; see its words.
        """
        names = tuple(dict.fromkeys(consumers))
        if not names or not all(map(is_name, names)):
            raise UsageError(f"consumers {names!r}: name at least one, of a-z, 0-9 and -")
        if not 0 < lifetime_s <= MAX_LIFETIME_S:
            raise UsageError(f"lifetime of {lifetime_s} s: at most {MAX_LIFETIME_S:g} s, above 0")
        topics = {name: TopicFilter(vm, name, RECEIPT) for name in names}
        ledger = await Ledger.open(path, _TABLES)
        outbox = cls(
            ledger,
            account,
            topics,
            lifetime_s=lifetime_s,
            max_messages=max_messages,
            max_per_s=max_per_s,
        )
        outbox._held = await ledger.do(lambda database: _restored(database, names))
        return outbox

    @property
    def held(self) -> int:
        """This is how many messages wait for some consumer's receipt."""
        return self._held

    async def publish(self, message: Message) -> None:
        """This accepts a message: on return it is on the disk, and will be delivered.

        One that is still held under its id, or was delivered, is not delivered again.

        Raises:
            BadMessage: it is too long, or its body is no JSON.
            BusRefused: the account may not publish there.
            OutboxFull: too many messages wait already.
            LedgerFailed: it could not be kept.
        """
        data = message.to_json()
        self._account.require_publish(message.topic)
        if self._held >= self._max_messages:
            raise OutboxFull(
                f"{self._ledger.path}: {self._held} messages wait for a receipt; are the consumers "
                f"{', '.join(self._receipts)} there?"
            )
        expires = time.time() + self._lifetime_s
        consumers = tuple(self._receipts)
        held = await self._ledger.do(
            lambda database: _keep(database, message.id, data, expires, consumers)
        )
        await self._note_held(held)
        self._news.set()

    async def deliver(self, channel: Channel) -> None:
        """This sends what is kept, over one connection after the other, until it is cancelled.

        Raises:
            BusRefused: the channel does not let the account in, or not read the receipts.
            LedgerFailed: the database failed.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            self._round = _Round()
            try:
                await self._session(channel)
            except (BusRefused, LedgerFailed):
                raise
            except BusError as error:
                _log.debug("%s: %s", self._account.name, error)
            pause_s = _FIRST_PAUSE_S if self._round.heard else min(2 * pause_s, MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def delivered(self) -> None:
        """This waits until every message has been handled by every consumer, or given up."""
        async with self._settled:
            await self._settled.wait_for(lambda: not self._held)

    async def close(self) -> None:
        """This lets go of the database, which keeps what was not delivered."""
        await self._ledger.close()

    async def _session(self, channel: Channel) -> None:
        """This delivers over one connection; BusError when that is lost."""
        async with AsyncExitStack() as stack:
            bus = await channel.connect(self._account)
            stack.push_async_callback(bus.close)
            readers = [await bus.subscribe(topics) for topics in self._receipts.values()]
            self._round.begin(self._receipts)
            try:
                async with asyncio.TaskGroup() as group:
                    for reader in readers:
                        group.create_task(self._read(reader), name="qvmi-receipts")
                    group.create_task(self._send(bus), name="qvmi-outbox")
            except ExceptionGroup as errors:
                raise first_of(errors) from None

    async def _read(self, receipts: Subscription) -> None:
        """This takes in the receipts of one consumer."""
        async for message in receipts:
            try:
                receipt = message.read_body(Receipt)
            except BadMessage as error:
                _log.warning("%s", error)
                continue
            consumer = message.codepack
            self._round.heard.add(consumer)
            if not receipt.to:
                self._round.begin((consumer,))
                self._news.set()
            elif any(receipt.to == topics.codepack for topics in self._account.publishes):
                await self._settle(consumer, receipt.ids)
        raise BusError("the connection that reads the receipts has ended")

    async def _settle(self, consumer: str, ids: Sequence[str]) -> None:
        settled, held = await self._ledger.do(lambda database: _settle(database, consumer, ids))
        for seq in settled:
            self._round.under_way.pop(seq, None)
        self._news.set()
        await self._note_held(held)

    async def _note_held(self, held: int) -> None:
        """This notes how many messages are held now; the answers come in the order of the commits."""
        self._held = held
        if not held:
            async with self._settled:
                self._settled.notify_all()

    async def _send(self, bus: Bus) -> None:
        """This sends what is owed, again where no receipt comes, as long as the connection holds."""
        while True:
            self._news.clear()
            await self._give_up()
            if await self._send_page(bus):
                await asyncio.sleep(_PAGE / self._max_per_s)
            else:
                await self._wait()

    async def _give_up(self) -> None:
        """This gives up, now and then, what is older than it may become."""
        now = asyncio.get_running_loop().time()
        if now < self._round.next_expiry:
            return
        self._round.next_expiry = now + RESEND_S
        expired, held = await self._ledger.do(_expire)
        await self._note_held(held)
        if expired:
            self.expired += expired
            _log.warning("%s: %d messages were given up", self._account.name, expired)

    async def _send_page(self, bus: Bus) -> bool:
        """This sends as many as may be under way; False where there is nothing to send for now."""
        state = self._round
        room = min(_PAGE, WINDOW - len(state.under_way))
        if room <= 0 or not state.wanted:
            return False
        after, wanted = state.cursor, tuple(state.wanted)
        page = await self._ledger.do(lambda database: _owed(database, after, wanted, room))
        if state.cursor != after:  # a consumer has come meanwhile: from the beginning
            return True
        for kept in page:
            state.cursor = kept.seq
            state.under_way[kept.seq] = asyncio.get_running_loop().time()
        await asyncio.gather(*(self._send_one(bus, kept) for kept in page))
        return bool(page)

    async def _send_one(self, bus: Bus, kept: _Kept) -> None:
        try:
            await bus.publish(Message.from_json(kept.data))
        except BusRefused as error:
            self.refused += 1
            _log.warning("%s", error)

    async def _wait(self) -> None:
        """This waits for news, or until what is under way has had its time."""
        try:
            async with asyncio.timeout(RESEND_S):
                await self._news.wait()
        except TimeoutError:
            self._round.resend(asyncio.get_running_loop().time() - RESEND_S)


class _Round:
    """This is how far the messages have been sent over one connection.

    Attributes:
        cursor: the last message that was sent.
        wanted: the consumers for whom they are sent.
        heard: the consumers that have spoken over this connection.
        under_way: when each was sent that nobody has given a receipt for.
        next_expiry: when to look again for messages that are too old.
    """

    def __init__(self) -> None:
        self.cursor = 0
        self.wanted: set[str] = set()
        self.heard: set[str] = set()
        self.under_way: dict[int, float] = {}
        self.next_expiry = 0.0

    def begin(self, consumers: Iterable[str]) -> None:
        """This sends everything that these consumers, who have just come, are owed."""
        self.cursor = 0
        self.wanted.update(consumers)
        self.under_way.clear()

    def resend(self, before: float) -> None:
        """This sends again what had its time, if those are there that owe a receipt."""
        late = [seq for seq, at in self.under_way.items() if at <= before]
        for seq in late:
            del self.under_way[seq]
        if late and self.heard:
            self.wanted = set(self.heard)
            self.cursor = min(self.cursor, min(late) - 1)


def _restored(database: Transaction, consumers: Sequence[str]) -> int:
    """This drops what is owed to nobody who is a consumer now, and counts what is left."""
    marks = ", ".join("?" * len(consumers))
    database.execute(f"DELETE FROM owed WHERE consumer NOT IN ({marks})", consumers)  # noqa: S608 - marks alone
    database.execute("DELETE FROM message WHERE seq NOT IN (SELECT seq FROM owed)")
    return _count_held(database)


def _keep(
    database: Transaction, name: str, data: bytes, expires: float, consumers: Sequence[str]
) -> int:
    """This keeps a message, unless it is there already, and counts what is held."""
    cursor = database.execute(
        "INSERT INTO message (id, data, expires) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (name, data, expires),
    )
    if cursor.rowcount:
        owed = [(cursor.lastrowid, consumer) for consumer in consumers]
        database.executemany("INSERT INTO owed VALUES (?, ?)", owed)
    return _count_held(database)


def _owed(database: Transaction, after: int, consumers: Sequence[str], most: int) -> list[_Kept]:
    """These are the next messages that one of these consumers is owed."""
    query = _OWED_TO.format(", ".join("?" * len(consumers)))
    return [_Kept._make(row) for row in database.execute(query, (after, *consumers, most))]


def _settle(database: Transaction, consumer: str, ids: Sequence[str]) -> tuple[list[int], int]:
    """This notes a consumer's receipt: for which messages it is, and how many are held now."""
    settled: list[int] = []
    for name in ids:
        row = database.execute("SELECT seq FROM message WHERE id = ?", (name,)).fetchone()
        if row is None:
            continue
        settled.append(row[0])
        database.execute("DELETE FROM owed WHERE seq = ? AND consumer = ?", (row[0], consumer))
        database.execute(
            "DELETE FROM message WHERE seq = ? AND seq NOT IN (SELECT seq FROM owed WHERE seq = ?)",
            (row[0], row[0]),
        )
    return settled, _count_held(database)


def _expire(database: Transaction) -> tuple[int, int]:
    """This gives up what is older than it may become: how many those are, and how many are held."""
    now = time.time()
    database.execute(
        "DELETE FROM owed WHERE seq IN (SELECT seq FROM message WHERE expires < ?)", (now,)
    )
    gone = database.execute("DELETE FROM message WHERE expires < ?", (now,)).rowcount
    return gone, _count_held(database)


def _count_held(database: Transaction) -> int:
    row = database.execute("SELECT count FROM held").fetchone()
    return int(row[0])
