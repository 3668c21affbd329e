"""The bus within one process, for a program that needs no broker."""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from qvmi.bus.account import Account
from qvmi.bus.message import Message
from qvmi.bus.requests import Requester, Requests
from qvmi.bus.subscription import Subscription, require_new
from qvmi.bus.topic import REQUEST, Topic, TopicFilter
from qvmi.errors import BusError, BusRefused

__all__ = ["LocalBus", "LocalChannel", "in_process"]


class LocalChannel:
    """This carries messages between the buses of one event loop.

    Accounts keep codepacks from mistakes here, not from malice: they share the process.
    """

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = {account.name: account for account in accounts}
        self._buses: list[LocalBus] = []
        self._retained: dict[Topic, bytes] = {}
        self._turns: Counter[str] = Counter()

    async def connect(self, account: Account, *, will: Message | None = None) -> "LocalBus":
        """This enters the channel; BusRefused for an account that it was not opened for."""
        if self._accounts.get(account.name) != account:
            raise BusRefused(f"connection of {account.name!r}", "unknown account or wrong secret")
        if will is not None:
            account.require_publish(will.topic)
            will.to_json()
        bus = LocalBus(account, self, will)
        self._buses.append(bus)
        return bus

    def subscriptions(self) -> list[Subscription]:
        """These are the subscriptions of all buses."""
        return [subscription for bus in self._buses for subscription in bus.subscriptions]

    def carry(self, topic: Topic, data: bytes, *, retain: bool) -> None:
        """This gives a message to every subscription that wants it, and keeps it if it is to."""
        if retain:
            self._retained[topic] = data
        sharing: defaultdict[str, list[Subscription]] = defaultdict(list)
        for subscription in self.subscriptions():
            if not subscription.topics.matches(topic):
                continue
            if subscription.group:
                sharing[subscription.filter_text].append(subscription)
            else:
                subscription.arrive(topic, data, retained=retain)
        for shared, members in sharing.items():
            turn = self._turns[shared] = self._turns[shared] + 1
            members[turn % len(members)].arrive(topic, data, retained=retain)

    def catch_up(self, subscription: Subscription) -> None:
        """This gives a new subscription what was kept."""
        for topic, data in self._retained.items():
            if subscription.topics.matches(topic):
                subscription.arrive(topic, data, retained=True)

    def forget(self, bus: "LocalBus") -> None:
        """This lets a closed bus go."""
        if bus in self._buses:
            self._buses.remove(bus)

    async def close(self) -> None:
        """This closes every bus."""
        for bus in tuple(self._buses):
            await bus.close()


class LocalBus:
    """This is one account's end of a :class:`LocalChannel`; see :class:`~qvmi.bus.bus.Bus`."""

    def __init__(self, account: Account, channel: LocalChannel, will: Message | None) -> None:
        self.subscriptions: list[Subscription] = []
        self._account = account
        self._channel = channel
        self._closed = False
        self._will = will
        self._requester = Requester(self)

    async def publish(self, message: Message, *, retain: bool = False) -> None:
        """This hands the message, as JSON, to every subscription that wants it."""
        self._require_open()
        data = message.to_json()
        topic = message.topic
        self._account.require_publish(topic)
        self._channel.carry(topic, data, retain=retain)

    async def subscribe(
        self, topics: TopicFilter, *, retained: bool = True, group: str | None = None
    ) -> Subscription:
        """This starts to receive what is published from now on, and first what was retained."""
        self._require_open()
        self._account.require_read(topics)
        require_new(self.subscriptions, topics, retained=retained, group=group)
        subscription = Subscription(topics, forget=self._forget, retained=retained, group=group)
        self.subscriptions.append(subscription)
        if group is None:
            self._channel.catch_up(subscription)
        return subscription

    async def request(
        self, topic: Topic, body: Mapping[str, object], *, deadline_s: float
    ) -> Message:
        """This asks a service, and waits for its answer."""
        return await self._requester.request(topic, body, deadline_s=deadline_s)

    async def serve(
        self, service: str, *, vm: str | None = None, group: str | None = None
    ) -> Requests:
        """This starts to receive what a service is asked from now on."""
        topics = TopicFilter(vm, None, REQUEST, service)
        arriving = await self.subscribe(topics, retained=False, group=group)
        return Requests(self, service, arriving)

    async def close(self) -> None:
        """This leaves the channel and ends the subscriptions."""
        self._channel.forget(self)
        if self._will is not None and not self._closed:
            self._channel.carry(self._will.topic, self._will.to_json(), retain=True)
        self._closed = True
        for subscription in self.subscriptions:
            subscription.end()
        self.subscriptions.clear()
        await self._requester.close()

    async def _forget(self, subscription: Subscription) -> None:
        self.subscriptions.remove(subscription)

    def _require_open(self) -> None:
        if self._closed:
            raise BusError(f"the bus of {self._account.name!r} is closed")


@asynccontextmanager
async def in_process(accounts: Sequence[Account]) -> AsyncIterator[LocalChannel]:
    """This opens a channel within this process, for these accounts."""
    channel = LocalChannel(accounts)
    try:
        yield channel
    finally:
        await channel.close()
