"""What keeps a codepack that floods the bus from harming the others: it is put out for a while.

mosquitto has no limit for a client's rate. So somebody who reads everything counts, and has the accounts of
whoever publishes too much revoked, which ends their connections, and admitted again later.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Never, Protocol, runtime_checkable

from qvmi.bus.account import Account
from qvmi.bus.bus import Channel, first_of
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import REPLY, TopicFilter
from qvmi.errors import AuditFailed, BusError, BusRefused

__all__ = ["MAX_PER_S", "PATIENT_SHARE", "PENALTY_S", "Admission", "Throttle"]

MAX_PER_S: Final = 500
"""Messages in a second after which a codepack is put out: fifty times what one says that finds much."""

PATIENT_SHARE: Final = 0.25
"""Of that, what is sent at most of what had to wait: whoever counts may have stood still for seconds."""

PENALTY_S: Final = 10.0
"""How long it stays out, unless told otherwise."""

_RECONNECT_S: Final = 0.2

_audit: Final = logging.getLogger("qvmi.audit")
_log: Final = logging.getLogger(__name__)


@runtime_checkable
class Admission(Protocol):
    """This decides who is let in, as a :class:`~qvmi.bus.broker.Broker` does."""

    async def admit(self, account: Account) -> None:
        """This lets an account in."""
        ...

    async def revoke(self, name: str) -> None:
        """This ends an account's connection, and lets it in no more."""
        ...


async def _tell_nobody(speaker: str, why: str) -> None:
    """This is told, and does nothing."""


class Throttle:
    """This puts out for a while whoever publishes more than so many messages in a second.

    What is no message of ours counts too. Speakers are ``vm.codepack``; all accounts whose names are
    that, or begin with it and a dot, are put out together.

    Args:
        admission: who decides; the broker.
        account: to read everything with.
        watched: the accounts that may be put out; others, such as the manager's own, are not.
        max_per_s: messages in a second that are not too many yet; None for :data:`MAX_PER_S`.
        penalty_s: how long somebody stays out; None for :data:`PENALTY_S`.
        changed: is told a speaker and why it is put out, before it is; and again, with no reason, once
            it is let in again. It may not raise.

    Attributes:
        suspended: how often each speaker was put out, by name.
    """

    def __init__(
        self,
        admission: Admission,
        account: Account,
        watched: Iterable[Account],
        *,
        max_per_s: int | None = None,
        penalty_s: float | None = None,
        changed: Callable[[str, str], Awaitable[None]] = _tell_nobody,
    ) -> None:
        self.suspended: Counter[str] = Counter()
        self._admission = admission
        self._account = account
        self._watched: defaultdict[str, list[Account]] = defaultdict(list)
        for one in watched:
            self._watched[_speaker_of(one)].append(one)
        self._max_per_s = MAX_PER_S if max_per_s is None else max_per_s
        self._penalty_s = PENALTY_S if penalty_s is None else penalty_s
        self._changed = changed
        self._out: dict[str, asyncio.Event] = {}

    def replace(self, account: Account) -> None:
        """This is told that an account has another secret: with that it is let in again."""
        speaker = _speaker_of(account)
        others = [one for one in self._watched[speaker] if one.name != account.name]
        self._watched[speaker] = [*others, account]

    def forget(self, account: Account) -> None:
        """This is told that an account was revoked for good: it is not let in again."""
        speaker = _speaker_of(account)
        self._watched[speaker] = [one for one in self._watched[speaker] if one.name != account.name]

    async def let_in(self, account: Account) -> bool:
        """This waits until an account that is put out is let in again.

        Returns:
            Whether it was put out at all.
        """
        end = self._out.get(_speaker_of(account))
        if end is not None:
            await end.wait()
        return end is not None

    async def keep(self, channel: Channel) -> Never:
        """This counts, over one connection after the other, until it is cancelled.

        Raises:
            BusRefused: the account is not let in.
        """
        while True:
            try:
                await self.run(channel)
            except BusRefused:
                raise
            except BusError as error:
                _log.debug("%s", error)
            await asyncio.sleep(_RECONNECT_S)

    async def run(self, channel: Channel) -> None:
        """This counts until it is cancelled; then everybody who was put out is let in again.

        Raises:
            BusError: the channel is lost: run it again.
        """
        bus = await channel.connect(self._account)
        try:
            async with asyncio.TaskGroup() as group:
                arriving = await bus.subscribe(TopicFilter())
                group.create_task(
                    self._count_refused(arriving, group), name="qvmi-throttle-refused"
                )
                await self._count(arriving, group)
        except ExceptionGroup as errors:
            raise first_of(errors) from None
        finally:
            await bus.close()

    async def _count(self, arriving: Subscription, group: asyncio.TaskGroup) -> Never:
        """This counts messages."""
        loop = asyncio.get_running_loop()
        counts: Counter[str] = Counter()
        until = loop.time() + 1.0
        async for message in arriving:
            if message.kind == REPLY:  # it is the service's, not that of whoever had asked
                continue
            if loop.time() >= until:
                counts.clear()
                until = loop.time() + 1.0
            speaker = message.topic.speaker
            counts[speaker] += 1
            self._judge(speaker, counts[speaker], group)
        raise BusError("the connection that counts has ended")

    async def _count_refused(self, arriving: Subscription, group: asyncio.TaskGroup) -> Never:
        """This counts what was no message."""
        before: Counter[str] = Counter()
        while True:
            counts = Counter(arriving.refused_of)
            for speaker, count in counts.items():
                self._judge(speaker, count - before[speaker], group)
            before = counts
            await asyncio.sleep(1.0)

    def _judge(self, speaker: str, count: int, group: asyncio.TaskGroup) -> None:
        """This puts a speaker out that has published so much in a second, if that is too much."""
        if count > self._max_per_s and speaker in self._watched and speaker not in self._out:
            self._out[speaker] = asyncio.Event()
            group.create_task(self._put_out(speaker), name="qvmi-throttle")

    async def _put_out(self, speaker: str) -> None:
        """This keeps a speaker out for its time."""
        self.suspended[speaker] += 1
        why = f"published more than {self._max_per_s} messages in a second"
        _tell_audit(f"throttled on the bus: {speaker} {why}")
        try:
            await self._changed(speaker, f"{why}, and is put out for {self._penalty_s:g} s")
            for account in self._watched[speaker]:
                await self._admission.revoke(account.name)
            await asyncio.sleep(self._penalty_s)
        finally:
            try:
                for account in self._watched[speaker]:  # which may be others by now
                    await self._admission.admit(account)
            finally:
                self._out.pop(speaker).set()
                await self._changed(speaker, "")


def _speaker_of(account: Account) -> str:
    return ".".join(account.name.split(".")[:2])


def _tell_audit(text: str) -> None:
    _log.warning("%s", text)
    try:
        _audit.warning(text)
    except AuditFailed as error:  # it is put out all the same
        _log.error("%s: %s", text, error)
