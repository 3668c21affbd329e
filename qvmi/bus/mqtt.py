"""The bus over MQTT 5: aiomqtt on a Unix socket, with every refusal of the broker made an error.

References: MQTT Version 5.0 (OASIS), 2.4 Reason Code, 3.4 PUBACK, 3.8.2.1.2 Subscription Identifier,
3.9 SUBACK.
"""

import asyncio
import itertools
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import aiomqtt
from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from qvmi.bus.account import Account
from qvmi.bus.message import Message
from qvmi.bus.subscription import Subscription
from qvmi.bus.topic import Topic, TopicFilter
from qvmi.errors import BadMessage, BrokerUnavailable, BusError, BusRefused

__all__ = ["MqttBus", "MqttChannel"]

ANSWER_TIMEOUT_S: Final = 5.0
"""Longest wait for the broker's answer; it takes 0.4 ms on a Unix socket of an idle machine."""

KEEPALIVE_S: Final = 10
"""A broker that hangs is noticed within twice this time."""

MAX_PENDING_PUBLISHES: Final = 16
"""Publishes awaiting their answer; further ones wait. Below paho's 20, so that none queue there."""

_AT_LEAST_ONCE: Final = 1
"""QoS 1: the lowest at which the broker answers a publish, and so can refuse it."""

_FIRST_REFUSAL: Final = 0x80
"""Reason codes from here on say no."""

_UNIX_PORT: Final = 1
"""paho insists on a port above 0 even where there is none."""

Answer = TypeVar("Answer")


class _AnsweredClient(aiomqtt.Client):
    """This is aiomqtt's client, which also tells what the broker answered to a publish.

    aiomqtt 2.5 drops the reason code of the PUBACK, so that a publish which the broker's ACL
    forbids looks like one that worked, and waits out its timeout where the connection breaks.
    So parts of aiomqtt that are not public are used here: `_client`, `_connected`,
    `_disconnected` and the `_on_…` methods; the tests of this module notice when they change.
    """

    def __init__(self, path: Path, account: Account) -> None:
        super().__init__(
            str(path),
            _UNIX_PORT,
            transport="unix",
            protocol=aiomqtt.ProtocolVersion.V5,
            username=account.name,
            password=account.secret,
            identifier=account.name,
            timeout=ANSWER_TIMEOUT_S,
            keepalive=KEEPALIVE_S,
            max_queued_outgoing_messages=2 * MAX_PENDING_PUBLISHES,
        )
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers: dict[int, asyncio.Future[ReasonCode]] = {}
        self._arrived: Callable[[MQTTMessage], None] | None = None
        self._client._create_unix_socket_connection = lambda: _connected(path)  # type: ignore[method-assign] # noqa: SLF001 - paho's own leaves its socket open where nothing listens

    async def open(self, *, arrived: Callable[[MQTTMessage], None]) -> None:
        """This connects; whatever happens, no socket is left behind that is not connected."""
        self._arrived = arrived
        opening = asyncio.create_task(self.__aenter__(), name="qvmi-mqtt-connect")
        try:
            await asyncio.shield(opening)
        except BaseException:
            await asyncio.wait({opening})  # a thread connects; it cannot be told to stop
            await self.shut()
            raise
        self._disconnected.add_done_callback(self._note_lost)

    async def shut(self) -> None:
        """This disconnects, by force if the broker does not let go."""
        if self._connected.done() and not self._connected.exception():
            with suppress(aiomqtt.MqttError):
                await self.__aexit__(None, None, None)
        if self._client.socket() is not None:
            self._client._sock_close()  # noqa: SLF001 - paho has no public way without the broker's help

    async def publish_answered(self, topic: str, data: bytes) -> ReasonCode:
        """This publishes at QoS 1 and returns the reason code of the PUBACK."""
        info = self._client.publish(topic, data, qos=_AT_LEAST_ONCE)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(info.rc)
        answer: asyncio.Future[ReasonCode] = asyncio.get_running_loop().create_future()
        self._answers[info.mid] = answer
        try:
            return await answer
        finally:
            del self._answers[info.mid]

    def _on_disconnect(
        self,
        client: Client,
        userdata: object,
        flags: DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if not self._connected.done():  # aiomqtt would wait for its timeout
            self._connected.set_exception(aiomqtt.MqttError("the broker closed the connection"))
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self,
        client: Client,  # noqa: ARG002 - paho gives it
        userdata: object,  # noqa: ARG002 - paho gives it
        mid: int,
        reason_code: ReasonCode,
        properties: Properties,  # noqa: ARG002 - paho gives it
    ) -> None:
        answer = self._answers.get(mid)
        if answer is not None and not answer.done():
            answer.set_result(reason_code)

    def _on_message(
        self,
        client: Client,  # noqa: ARG002 - paho gives it
        userdata: object,  # noqa: ARG002 - paho gives it
        message: MQTTMessage,
    ) -> None:
        if self._arrived is not None:
            self._arrived(message)

    def _note_lost(self, disconnected: asyncio.Future[None]) -> None:
        if not self.lost.done() and not disconnected.cancelled():
            error = disconnected.exception()
            self.lost.set_result(str(error) if error else "the connection was closed")


@dataclass(slots=True)
class _Readers:
    """The subscriptions that share one topic filter, which the broker knows by a number."""

    identifier: int
    subscriptions: list[Subscription] = field(default_factory=list)


class MqttBus:
    """This is one account's end of an MQTT broker; see :class:`~qvmi.bus.bus.Bus`.

    It does not come back by itself: once the broker is lost, everything raises BusError.
    """

    def __init__(self, account: Account, client: _AnsweredClient) -> None:
        self._account = account
        self._client = client
        self._closed = False
        self._subscribing = asyncio.Lock()
        self._slots = asyncio.Semaphore(MAX_PENDING_PUBLISHES)
        self._publishing: set[asyncio.Task[ReasonCode]] = set()
        self._readers: dict[TopicFilter, _Readers] = {}
        self._identifiers = itertools.count(1)

    @classmethod
    async def connect(cls, path: Path, account: Account) -> "MqttBus":
        """This connects to the broker that listens on a Unix socket.

        Raises:
            BrokerUnavailable: nothing listens there, or it does not answer.
            BusRefused: the broker does not accept the account.
        """
        client = _AnsweredClient(path, account)
        bus = cls(account, client)
        try:
            await client.open(arrived=bus._arrived)
        except aiomqtt.MqttCodeError as error:
            raise BusRefused(f"connection of {account.name!r}", str(error)) from error
        except aiomqtt.MqttError as error:
            raise BrokerUnavailable(f"no broker answers on {path}: {error}") from error
        client.lost.add_done_callback(bus._lost)
        return bus

    async def publish(self, message: Message) -> None:
        """This publishes, and waits until the broker has taken or refused the message."""
        data = message.to_json()
        topic = message.topic.text
        await self._slots.acquire()
        # It goes on where the caller is cancelled: paho holds the message until the broker answers,
        # and has room for so many only.
        publishing = asyncio.create_task(self._publish(topic, data), name="qvmi-mqtt-publish")
        self._publishing.add(publishing)
        publishing.add_done_callback(self._published)
        _require_granted(topic, await asyncio.shield(publishing))

    async def subscribe(self, topics: TopicFilter) -> Subscription:
        """This subscribes, and waits until the broker has granted or refused it."""
        self._account.require_read(
            topics
        )  # mosquitto grants what its ACL forbids, and stays silent
        subscription = Subscription(topics, forget=self._forget)
        async with self._subscribing:
            self._require_open()
            readers = self._readers.setdefault(topics, _Readers(next(self._identifiers)))
            readers.subscriptions.append(subscription)  # first: messages may overtake the answer
            try:
                if len(readers.subscriptions) == 1:
                    await self._request_subscription(topics, readers.identifier)
            except BaseException:
                self._remove(subscription)
                raise
        return subscription

    async def close(self) -> None:
        """This leaves the broker and ends the subscriptions."""
        if not self._closed:
            self._closed = True
            self._end_subscriptions()
            await self._client.shut()

    async def _publish(self, topic: str, data: bytes) -> ReasonCode:
        return await self._answer(self._client.publish_answered(topic, data))

    def _published(self, publishing: asyncio.Task[ReasonCode]) -> None:
        self._publishing.discard(publishing)
        self._slots.release()
        if not publishing.cancelled():
            publishing.exception()  # seen: a caller that was cancelled does not look

    async def _request_subscription(self, topics: TopicFilter, identifier: int) -> None:
        properties = Properties(PacketTypes.SUBSCRIBE)  # type: ignore[no-untyped-call] # paho's
        properties.SubscriptionIdentifier = identifier
        request = self._client.subscribe(topics.text, qos=_AT_LEAST_ONCE, properties=properties)
        for code in await self._answer(request):
            _require_granted(topics.text, code)

    async def _forget(self, subscription: Subscription) -> None:
        """This unsubscribes; what the broker had sent before it knew is still delivered."""
        async with self._subscribing:
            readers = self._readers[subscription.topics].subscriptions
            if readers == [subscription]:
                with suppress(BusError):  # a lost broker has forgotten it already
                    await self._answer(self._client.unsubscribe(subscription.topics.text))
            self._remove(subscription)

    def _remove(self, subscription: Subscription) -> None:
        readers = self._readers[subscription.topics].subscriptions
        readers.remove(subscription)
        if not readers:
            del self._readers[subscription.topics]

    def _arrived(self, message: MQTTMessage) -> None:
        """This passes an arrival on to the subscriptions that the broker sent it for."""
        identifiers = getattr(message.properties, "SubscriptionIdentifier", ())
        for readers in self._readers.values():
            if readers.identifier in identifiers:
                for subscription in readers.subscriptions:
                    _deliver(message, subscription)

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
        path: of its Unix socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def connect(self, account: Account) -> MqttBus:
        """This connects an account; see :meth:`MqttBus.connect`."""
        return await MqttBus.connect(self.path, account)


async def _first_of(asking: asyncio.Task[Answer], lost: asyncio.Future[str]) -> None:
    waiting: set[asyncio.Future[Answer] | asyncio.Future[str]] = {asking, lost}
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def _deliver(message: MQTTMessage, subscription: Subscription) -> None:
    try:
        topic = Topic.parse(message.topic)
    except (BadMessage, UnicodeDecodeError):
        subscription.refused += 1
    else:
        subscription.arrive(topic, bytes(message.payload))


def _require_granted(topic: str, code: ReasonCode | int) -> None:
    value = code if isinstance(code, int) else code.value
    if value >= _FIRST_REFUSAL:
        raise BusRefused(topic, f"{code} (reason code {value:#04x})")
