"""The inbox: each message of an outbox is handled once, whoever is killed in between.

What a handler notes of a message lies in the same transaction as the note that it was handled. So either
both are there or neither is, and a message that is sent again, as its receipt was lost, is not handled again.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from qvmi.bus.account import Account
from qvmi.bus.bus import Bus, Channel, first_of
from qvmi.bus.ledger import Ledger, Transaction
from qvmi.bus.message import Message
from qvmi.bus.outbox import MAX_LIFETIME_S, MAX_MESSAGES, MAX_PAUSE_S
from qvmi.bus.receipt import Receipt
from qvmi.bus.refusals import Refusals
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import TopicFilter
from qvmi.errors import BusError, BusRefused, InboxFull, LedgerFailed

__all__ = ["Handler", "Inbox"]

Result = TypeVar("Result")

Handler = Callable[[Message, Transaction], None]
"""This takes in one message. It runs in a thread of the inbox's, and what it writes into the
transaction is kept exactly if the message counts as handled; it commits nothing itself. A message
whose handler raises is not handled, and comes again; InboxFull says that there is no room for it yet."""

MAX_TOGETHER: Final = 64
"""Messages that are handled in a row before any of their receipts is sent."""

_FIRST_PAUSE_S: Final = 0.05
_REMEMBERED_S: Final = 2 * MAX_LIFETIME_S
"""How long it is known what was handled: longer than any outbox sends it again, by clocks that differ."""

MAX_REMEMBERED: Final = 2 * MAX_MESSAGES
"""Handled messages known of one speaker, the newest. An outbox holds half as many, and sends its oldest
first over each connection, so one that was handled so many messages ago was settled long since."""

FORGET_EVERY: Final = 1024
"""Messages of one speaker after which it is looked for what may be forgotten: that takes 15 ms then."""

_TABLES: Final = (
    (
        "CREATE TABLE IF NOT EXISTS handled (vm TEXT NOT NULL, codepack TEXT NOT NULL,"
        " id TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (vm, codepack, id)) STRICT, WITHOUT ROWID"
    ),
    "CREATE INDEX IF NOT EXISTS handled_at ON handled (vm, codepack, at, id)",
)
_FORGET: Final = (
    "DELETE FROM handled WHERE vm = ?1 AND codepack = ?2 AND at < ?3",
    (
        "DELETE FROM handled WHERE vm = ?1 AND codepack = ?2 AND (at, id) <= (SELECT at, id FROM handled"
        " WHERE vm = ?1 AND codepack = ?2 ORDER BY at DESC, id DESC LIMIT 1 OFFSET ?3)"
    ),
)
"""By age, and by number."""

_log: Final = logging.getLogger(__name__)


class Inbox:
    """This handles what one consumer is sent; only :meth:`open` makes one.

    Attributes:
        handled: messages that were handled since this was opened.
        repeated: those that had been handled before.
        failed: those whose handler raised.
        dropped: those that came faster than they were handled, and will come again.
        refused: arrivals that were no message of ours, or not from where they said.
    """

    def __init__(self, ledger: Ledger, account: Account, *, vm: str, name: str) -> None:
        self.handled = 0
        self.repeated = 0
        self.failed = 0
        self.dropped = 0
        self.refused = 0
        self._ledger = ledger
        self._account = account
        self._vm = vm
        self._name = name
        self._room = asyncio.Semaphore(MAX_TOGETHER)
        self._receipts: defaultdict[str, list[str]] = defaultdict(list)
        self._since_forgotten: Counter[str] = Counter()
        self._news = asyncio.Event()
        self._refusals = Refusals()

    @classmethod
    async def open(
        cls, path: Path, account: Account, *, vm: str, name: str, tables: Sequence[str] = ()
    ) -> Self:
        """This opens an inbox, with what it knows of before.

        Args:
            path: of its database, which is made if there is none.
            account: who consumes; see :meth:`~qvmi.bus.account.Account.of_consumer`.
            vm: the watched machine.
            name: the consumer, as outboxes name it.
            tables: ``CREATE TABLE IF NOT EXISTS …`` for what the handler notes; ``handled`` is taken.

        Raises:
            LedgerFailed: the database cannot be used; see its words.
        """
        ledger = await Ledger.open(path, (*_TABLES, *tables))
        await ledger.do(_forget_of_all)
        return cls(ledger, account, vm=vm, name=name)

    async def consume(self, channel: Channel, kinds: Iterable[str], handle: Handler) -> None:
        """This handles messages, over one connection after the other, until it is cancelled.

        Args:
            channel: where they come from.
            kinds: of the messages, such as ``alert``: those that are sent by outboxes.
            handle: takes in one message.

        Raises:
            BusRefused: the channel does not let the account in, or not read.
            LedgerFailed: the database failed.
        """
        pause_s = _FIRST_PAUSE_S
        topics = [TopicFilter(self._vm, None, kind) for kind in kinds]
        while True:
            before = self.handled + self.repeated
            try:
                await self._session(channel, topics, handle)
            except (BusRefused, LedgerFailed):
                raise
            except BusError as error:
                _log.debug("%s: %s", self._account.name, error)
            went_well = self.handled + self.repeated > before
            pause_s = _FIRST_PAUSE_S if went_well else min(2 * pause_s, MAX_PAUSE_S)
            await asyncio.sleep(pause_s)

    async def ask(self, work: Callable[[Transaction], Result]) -> Result:
        """This looks into, or changes, what the handler has noted; the same database."""
        return await self._ledger.do(work)

    async def close(self) -> None:
        """This lets go of the database."""
        await self._ledger.close()

    async def _session(
        self, channel: Channel, kinds: Sequence[TopicFilter], handle: Handler
    ) -> None:
        """This handles what comes over one connection; BusError when that is lost."""
        async with AsyncExitStack() as stack:
            bus = await channel.connect(self._account)
            stack.push_async_callback(bus.close)
            arriving = [await bus.subscribe(topics) for topics in kinds]
            stack.callback(self._count, arriving)
            self._receipts.clear()
            # Whoever has something for us sends it now that we can hear it.
            await bus.publish(Receipt("").message(vm=self._vm, consumer=self._name))
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._send_receipts(bus), name="qvmi-receipts")
                    for subscription in arriving:
                        reading = self._read(subscription, handle, group)
                        group.create_task(reading, name="qvmi-inbox")
            except ExceptionGroup as errors:
                raise first_of(errors) from None

    async def _read(
        self, arriving: Subscription, handle: Handler, group: asyncio.TaskGroup
    ) -> None:
        async for message in arriving:
            await self._room.acquire()
            handling = group.create_task(self._handle(message, handle), name="qvmi-handle")
            handling.add_done_callback(lambda _: self._room.release())
        raise BusError("the connection that reads the messages has ended")

    async def _handle(self, message: Message, handle: Handler) -> None:
        """This handles one message, unless it was before, and has a receipt given for it."""
        try:
            new = await self._ledger.do(lambda database: _take_in(database, message, handle))
        except LedgerFailed:
            raise
        except InboxFull as error:
            self.failed += 1
            self._refusals.note(message.topic.speaker, str(error))
            return
        except Exception:  # noqa: BLE001 - a handler may raise what it likes
            self.failed += 1
            _log.exception("%s: %s is not handled", self._account.name, message.topic.text)
            return
        self.handled += new
        self.repeated += not new
        self._receipts[message.codepack].append(message.id)
        self._news.set()
        if new:
            await self._note_new(message.codepack)

    async def _note_new(self, codepack: str) -> None:
        """This forgets, now and then, what of a speaker's need not be known any more."""
        self._since_forgotten[codepack] += 1
        if self._since_forgotten[codepack] >= FORGET_EVERY:
            self._since_forgotten[codepack] = 0
            await self._ledger.do(partial(_forget, vm=self._vm, codepack=codepack))

    async def _send_receipts(self, bus: Bus) -> None:
        """This sends the receipts of what is handled, many in one message."""
        while True:
            await self._news.wait()
            self._news.clear()
            handled = dict(self._receipts)
            self._receipts.clear()
            for sender, ids in handled.items():
                for receipt in Receipt.split(sender, ids):
                    await bus.publish(receipt.message(vm=self._vm, consumer=self._name))

    def _count(self, arriving: Iterable[Subscription]) -> None:
        for subscription in arriving:
            self.dropped += subscription.dropped
            self.refused += subscription.refused


def _take_in(database: Transaction, message: Message, handle: Handler) -> bool:
    """This handles a message and notes it, or tells that it was handled before.

    The speaker belongs to the id: nobody can have another's message taken for one that was handled.
    """
    who = (message.vm, message.codepack, message.id)
    known = "SELECT 1 FROM handled WHERE vm = ? AND codepack = ? AND id = ?"
    if database.execute(known, who).fetchone():
        return False
    handle(message, database)
    database.execute("INSERT INTO handled VALUES (?, ?, ?, ?)", (*who, time.time()))
    return True


def _forget_of_all(database: Transaction) -> None:
    """This forgets of everybody's what need not be known any more."""
    for vm, codepack in database.execute("SELECT DISTINCT vm, codepack FROM handled").fetchall():
        _forget(database, vm=vm, codepack=codepack)


def _forget(database: Transaction, *, vm: str, codepack: str) -> None:
    """This forgets of a speaker's what is not sent again: too much time or too many came since."""
    for query, bound in zip(_FORGET, (time.time() - _REMEMBERED_S, MAX_REMEMBERED), strict=True):
        database.execute(query, (vm, codepack, bound))
