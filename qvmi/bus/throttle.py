"""What keeps a codepack that floods the bus from harming the others: it is put out for a while.

mosquitto has no limit for a client's rate. So somebody who reads everything counts, and has the account of
whoever publishes too much revoked, which ends its connection, and admitted again later.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from qvmi.bus.account import Account
from qvmi.bus.bus import Channel, first_of
from qvmi.bus.topic import TopicFilter
from qvmi.errors import AuditFailed

__all__ = ["MAX_PER_S", "PENALTY_S", "Admission", "Throttle"]

MAX_PER_S: Final = 500
"""Messages in a second after which a codepack is put out: fifty times what one says that finds much."""

PENALTY_S: Final = 10.0
"""How long it stays out, unless told otherwise."""

_audit: Final = logging.getLogger("qvmi.audit")
_log: Final = logging.getLogger(__name__)


class Admission(Protocol):
    """This decides who is let in, as a :class:`~qvmi.bus.broker.Broker` does."""

    async def admit(self, account: Account) -> None:
        """This lets an account in."""
        ...

    async def revoke(self, name: str) -> None:
        """This ends an account's connection, and lets it in no more."""
        ...


class Throttle:
    """This puts out for a while whoever publishes more than so many messages in a second.

    Args:
        admission: who decides; the broker.
        account: to read everything with.
        watched: the accounts that may be put out; others, such as the manager's own, are not.
        max_per_s: messages in a second that are not too many yet.
        penalty_s: how long somebody stays out.

    Attributes:
        suspended: how often each account was put out, by name.
    """

    def __init__(
        self,
        admission: Admission,
        account: Account,
        watched: Iterable[Account],
        *,
        max_per_s: int = MAX_PER_S,
        penalty_s: float = PENALTY_S,
    ) -> None:
        self.suspended: Counter[str] = Counter()
        self._admission = admission
        self._account = account
        self._watched = {one.name: one for one in watched}
        self._max_per_s = max_per_s
        self._penalty_s = penalty_s
        self._out: set[str] = set()

    async def run(self, channel: Channel) -> None:
        """This counts until it is cancelled; then everybody who was put out is let in again.

        Raises:
            BusError: the channel is lost: run it again.
        """
        bus = await channel.connect(self._account)
        try:
            async with asyncio.TaskGroup() as group:
                arriving = await bus.subscribe(TopicFilter(), retained=False)
                loop = asyncio.get_running_loop()
                counts: Counter[str] = Counter()
                until = loop.time() + 1.0
                async for message in arriving:
                    if loop.time() >= until:
                        counts.clear()
                        until = loop.time() + 1.0
                    name = f"{message.vm}.{message.codepack}"
                    counts[name] += 1
                    if counts[name] > self._max_per_s and self._may_be_put_out(name):
                        group.create_task(self._put_out(name), name="qvmi-throttle")
        except ExceptionGroup as errors:
            raise first_of(errors) from None
        finally:
            await bus.close()

    def _may_be_put_out(self, name: str) -> bool:
        """This tells whether an account is to be put out now, and remembers that it is."""
        if name not in self._watched or name in self._out:
            return False
        self._out.add(name)
        return True

    async def _put_out(self, name: str) -> None:
        """This keeps an account out for its time."""
        self.suspended[name] += 1
        text = f"throttled on the bus: {name} published more than {self._max_per_s} messages in a second"
        _log.warning("%s", text)
        try:
            _audit.warning(text)
        except AuditFailed as error:  # it is put out all the same
            _log.error("%s: %s", text, error)
        await self._admission.revoke(name)
        try:
            await asyncio.sleep(self._penalty_s)
        finally:
            await self._admission.admit(self._watched[name])
            self._out.discard(name)
