"""The bus over MQTT 5: aiomqtt, with every refusal of the broker made an error.

References: MQTT Version 5.0 (OASIS), 2.4 Reason Code, 3.8.2.1.2 Subscription Identifier,
3.8.3.1 Subscription Options, 3.9 SUBACK.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from qvmi.bus.account import Account
from qvmi.bus.broker_address import BrokerAddress
from qvmi.bus.bus import OpenChannel
from qvmi.bus.message import Message
from qvmi.bus.mqtt_client import (
    ANSWER_TIMEOUT_S,
    AT_LEAST_ONCE,
    MAX_PENDING_PUBLISHES,
    AnsweredClient,
)
from qvmi.bus.mqtt_packet import Arrival
from qvmi.bus.mqtt_properties import properties_of
from qvmi.bus.requests import Requester, Requests
from qvmi.bus.subscription import Subscription, require_new
from qvmi.bus.topic import REQUEST, Topic, TopicFilter, speaker_in
from qvmi.errors import BadMessage, BrokerUnavailable, BusError, BusRefused

__all__ = ["MqttBus", "MqttChannel", "broker_at"]

_FIRST_REFUSAL: Final = 0x80
"""Reason codes from here on say no."""

Answer = TypeVar("Answer")


@dataclass(slots=True)
class _Readers:
    """The subscriptions that share one topic filter.

    The broker knows a client's filter once only. Each new subscription asks for it again, under a new
    number, so that the broker sends what is retained again, which is for the new one alone.
    """

    retained: bool
    subscriptions: list[Subscription] = field(default_factory=list)
    numbers: dict[int, Subscription] = field(default_factory=dict)

    def those_for(self, arrival: Arrival) -> Sequence[Subscription]:
        """These are the subscriptions that an arrival is for."""
        asked = [self.numbers[number] for number in arrival.numbers if number in self.numbers]
        old = arrival.retained and self.retained  # else the flag is that of the publisher
        return asked if old or not asked else self.subscriptions


class MqttBus:
    """This is one account's end of an MQTT broker; see :class:`~qvmi.bus.bus.Bus`.

    It does not come back by itself: once the broker is lost, everything raises BusError.
    """

    def __init__(self, account: Account, client: AnsweredClient, *, guarded: bool) -> None:
        self._account = account
        self._client = client
        self._guarded = guarded
        self._closed = False
        self._subscribing = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_PENDING_PUBLISHES)
        self._publishing: set[asyncio.Task[ReasonCode]] = set()
        self._readers: dict[str, _Readers] = {}
        self._numbers = itertools.count(1)
        self._requester = Requester(self)

    @classmethod
    async def connect(
        cls, where: Path | BrokerAddress, account: Account, *, will: Message | None = None
    ) -> "MqttBus":
        """This connects to a broker.

        Args:
            where: the Unix socket it listens on, or its address.
            account: who connects.
            will: see :meth:`~qvmi.bus.bus.Channel.connect`.

        Raises:
            BrokerUnavailable: nothing listens there, or it is not who its certificate should say, or
                it does not answer.
            BusRefused: the broker does not accept the account, or not its will.
        """
        address = BrokerAddress.of_socket(where) if isinstance(where, Path) else where
        if will is not None:
            account.require_publish(will.topic)
        client = AnsweredClient(address, account, will)
        bus = cls(account, client, guarded=address.login is None)
        try:
            await client.open(arrived=bus._arrived)
        except aiomqtt.MqttCodeError as error:
            raise BusRefused(f"connection of {account.name!r}", str(error)) from error
        except aiomqtt.MqttError as error:
            raise BrokerUnavailable(f"no broker answers on {address}: {error}") from error
        client.lost.add_done_callback(bus._lost)
        return bus

    async def publish(self, message: Message, *, retain: bool = False) -> None:
        """This publishes, and waits until the broker has taken or refused the message."""
        data = message.to_json()
        topic = message.topic.text
        if not self._guarded:
            self._account.require_publish(message.topic)
        await self._slots.acquire()
        # It goes on where the caller is cancelled: paho holds the message until the broker answers,
        # and has room for so many only.
        answer = self._client.publish_answered(
            topic, data, retain=retain, properties=properties_of(message)
        )
        publishing = asyncio.create_task(self._answer(answer), name="qvmi-mqtt-publish")
        self._publishing.add(publishing)
        publishing.add_done_callback(self._published)
        _require_granted(topic, await asyncio.shield(publishing))

    async def subscribe(
        self, topics: TopicFilter, *, retained: bool = True, group: str | None = None
    ) -> Subscription:
        """This subscribes, and waits until the broker has granted or refused it."""
        # mosquitto grants what its ACL forbids, and stays silent.
        self._account.require_read(topics)
        subscription = Subscription(topics, forget=self._forget, retained=retained, group=group)
        async with self._subscribing:
            self._require_open()
            open_ones = (one for them in self._readers.values() for one in them.subscriptions)
            require_new(open_ones, topics, retained=retained, group=group)
            readers = self._readers.setdefault(subscription.filter_text, _Readers(retained))
            number = next(self._numbers)
            readers.subscriptions.append(subscription)  # first: messages may overtake the answer
            readers.numbers[number] = subscription
            try:
                await self._request_subscription(subscription, number)
            except BaseException:
                self._remove(subscription)
                raise
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
        """This leaves the broker and ends the subscriptions."""
        if not self._closed:
            self._closed = True
            self._end_subscriptions()
            await self._requester.close()
            await self._client.shut()

    def _published(self, publishing: asyncio.Task[ReasonCode]) -> None:
        self._publishing.discard(publishing)
        self._slots.release()
        if not publishing.cancelled():
            publishing.exception()  # seen: a caller that was cancelled does not look

    async def _request_subscription(self, subscription: Subscription, number: int) -> None:
        properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call] # paho's
        properties.SubscriptionIdentifier = number
        # Whoever takes nothing retained must be told of it also while it is published.
        options = SubscribeOptions(qos=AT_LEAST_ONCE, retainAsPublished=not subscription.retained)
        text = subscription.filter_text
        request = self._client.subscribe(text, options=options, properties=properties)
        for code in await self._answer(request):
            _require_granted(text, code)

    async def _forget(self, subscription: Subscription) -> None:
        """This unsubscribes; what the broker had sent before it knew is still delivered."""
        async with self._subscribing:
            readers = self._readers[subscription.filter_text].subscriptions
            if readers == [subscription]:
                with suppress(BusError):  # a lost broker has forgotten it already
                    await self._answer(self._client.unsubscribe(subscription.filter_text))
            self._remove(subscription)

    def _remove(self, subscription: Subscription) -> None:
        readers = self._readers[subscription.filter_text]
        readers.subscriptions.remove(subscription)
        if not readers.subscriptions:
            del self._readers[subscription.filter_text]

    def _arrived(self, arrival: Arrival) -> None:
        """This passes an arrival on to the subscriptions that the broker sent it for."""
        for readers in self._readers.values():
            for subscription in readers.those_for(arrival):
                _deliver(arrival, subscription)

    def _lost(self, reason: asyncio.Future[str]) -> None:
        if not reason.cancelled():
            self._end_subscriptions(lost=f"the broker is lost: {reason.result()}")

    def _end_subscriptions(self, *, lost: str = "") -> None:
        for readers in self._readers.values():
            for subscription in readers.subscriptions:
                subscription.end(lost=lost)

    async def _answer(self, request: Coroutine[object, object, Answer]) -> Answer:
        """This awaits the broker's answer; BusError if it is lost or late."""
        try:
            self._require_open()
        except BusError:
            request.close()
            raise
        asking = asyncio.create_task(request, name="qvmi-mqtt-request")
        lost = self._client.lost
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await _first_of(asking, lost)
            if asking.done():
                return asking.result()
        except aiomqtt.MqttError as error:
            raise BusError(f"the broker does not take it: {error}") from error
        except TimeoutError:
            raise BusError(f"no answer of the broker within {ANSWER_TIMEOUT_S:g} s") from None
        finally:
            asking.cancel()
        raise BusError(f"the broker is lost: {lost.result()}")

    def _require_open(self) -> None:
        if self._closed:
            raise BusError(f"the bus of {self._account.name!r} is closed")
        if self._client.lost.done():
            raise BusError(f"the broker is lost: {self._client.lost.result()}")


class MqttChannel:
    """This is a broker that somebody else runs, such as the parent of this process.

    Args:
        where: the Unix socket it listens on, or its address.
    """

    def __init__(self, where: Path | BrokerAddress) -> None:
        self.where = where

    async def connect(self, account: Account, *, will: Message | None = None) -> MqttBus:
        """This connects an account; see :meth:`MqttBus.connect`."""
        return await MqttBus.connect(self.where, account, will=will)


def broker_at(url: str) -> OpenChannel:
    """This opens a broker that exists already, by its URL; see :meth:`BrokerAddress.parse`.

    Where the URL names a user, all accounts log in as that one. The broker then cannot tell them apart,
    and what each may do is checked on this side only: that keeps them from mistakes, not from malice.

    Raises:
        UsageError: the URL is none. No secret is in the message.
    """
    channel = MqttChannel(BrokerAddress.parse(url))

    @asynccontextmanager
    async def opened(_: Sequence[Account]) -> AsyncIterator[MqttChannel]:
        yield channel

    return opened


async def _first_of(asking: asyncio.Task[Answer], lost: asyncio.Future[str]) -> None:
    waiting: set[asyncio.Future[Answer] | asyncio.Future[str]] = {asking, lost}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def _deliver(arrival: Arrival, subscription: Subscription) -> None:
    try:
        topic = Topic.parse(arrival.topic)
    except BadMessage:
        subscription.refuse(speaker_in(arrival.topic), "its topic is none of ours")
    else:
        subscription.arrive(topic, arrival.payload, retained=arrival.retained)


def _require_granted(topic: str, code: ReasonCode | int) -> None:
    value = code if isinstance(code, int) else code.value
    if value >= _FIRST_REFUSAL:
        raise BusRefused(topic, f"{code} (reason code {value:#04x})")
