"""aiomqtt's client, made to tell what the broker answers to a publish.

References: MQTT Version 5.0 (OASIS), 2.4 Reason Code, 3.4 PUBACK.
"""

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import aiomqtt
from paho.mqtt.client import Client, DisconnectFlags
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from qvmi.bus.account import Account
from qvmi.bus.broker_address import BrokerAddress, Login
from qvmi.bus.message import Message
from qvmi.bus.mqtt_packet import Arrival, identifier_and_rest, read_publish
from qvmi.bus.mqtt_properties import last_wills_properties
from qvmi.bus.refusals import Refusals
from qvmi.errors import BadMessage

__all__ = ["ANSWER_TIMEOUT_S", "AT_LEAST_ONCE", "MAX_PENDING_PUBLISHES", "AnsweredClient"]

ANSWER_TIMEOUT_S: Final = 5.0
"""Longest wait for the broker's answer; it takes 0.4 ms on a Unix socket of an idle machine."""

KEEPALIVE_S: Final = 10
"""A broker that hangs is noticed within twice this time."""

MAX_PENDING_PUBLISHES: Final = 16
"""Publishes awaiting their answer; further ones wait. Below paho's 20, so that none queue there."""

AT_LEAST_ONCE: Final = 1
"""QoS 1: the lowest at which the broker answers a publish, and so can refuse it."""

_WITH_WILL: Final = 0x04
"""Reason code of a disconnect after which the will is published."""

_UNIX_PORT: Final = 1
"""paho insists on a port above 0 even where there is none."""


class AnsweredClient(aiomqtt.Client):
    """This is aiomqtt's client, which also tells what the broker answered to a publish.

    aiomqtt 2.5 drops the reason code of the PUBACK, so that a publish which the broker's ACL
    forbids looks like one that worked, and waits out its timeout where the connection breaks.
    So parts of aiomqtt that are not public are used here: `_client`, `_connected`,
    `_disconnected`, the `_on_…` methods, and paho's `_handle_publish`, `_in_packet` and
    `_send_puback`; the tests of this module notice when they change.
    """

    def __init__(self, address: BrokerAddress, account: Account, will: Message | None) -> None:
        tls = address.tls()
        login = address.login or Login(account.name, account.secret)
        super().__init__(
            address.host,
            address.port or _UNIX_PORT,
            transport="unix" if address.scheme == "unix" else "tcp",
            tls_context=tls,
            protocol=aiomqtt.ProtocolVersion.V5,
            username=login.user,
            password=login.secret,
            identifier=account.name,
            will=_last_will(will) if will else None,
            timeout=ANSWER_TIMEOUT_S,
            keepalive=KEEPALIVE_S,
            max_queued_outgoing_messages=2 * MAX_PENDING_PUBLISHES,
        )
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.malformed = 0
        self._refusals = Refusals()
        self._answers: dict[int, asyncio.Future[ReasonCode]] = {}
        self._arrived: Callable[[Arrival], None] | None = None
        if tls:
            self._client._ssl_wrap_socket = lambda tcp_sock: _encrypted(tcp_sock, tls, address.host)  # type: ignore[method-assign] # noqa: SLF001 - paho's own leaves its socket open where it does not trust the broker
        self._client._handle_publish = self._take_publish  # type: ignore[method-assign] # noqa: SLF001 - paho's own gives up over what others may send
        if will:  # whoever leaves is gone, however it leaves
            with_will = ReasonCode(PacketTypes.DISCONNECT, identifier=_WITH_WILL)
            leave = functools.partial(self._client.disconnect, with_will)
            self._client.disconnect = leave  # type: ignore[method-assign] # aiomqtt gives no reason
        self._client._create_unix_socket_connection = lambda: _connected(address.host)  # type: ignore[method-assign] # noqa: SLF001 - paho's own leaves its socket open where nothing listens

    async def open(self, *, arrived: Callable[[Arrival], None]) -> None:
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

    async def publish_answered(
        self, topic: str, data: bytes, *, retain: bool, properties: Properties
    ) -> ReasonCode:
        """This publishes at QoS 1 and returns the reason code of the PUBACK."""
        info = self._client.publish(
            topic, data, qos=AT_LEAST_ONCE, retain=retain, properties=properties
        )
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

    def _take_publish(self) -> MQTTErrorCode:
        """This takes a publish that paho has received, in the place of paho's own method."""
        header = self._client._in_packet["command"]  # noqa: SLF001 - it is passed nowhere else
        packet = bytes(self._client._in_packet["packet"])  # noqa: SLF001 - as above
        try:
            identifier, topic, rest = identifier_and_rest(header, packet)
        except BadMessage:
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        try:
            arrival = read_publish(header, topic, rest)
        except BadMessage as error:
            self.malformed += 1
            self._refusals.note(None, str(error))
        else:
            if self._arrived is not None:
                self._arrived(arrival)
        if not identifier:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return self._client._send_puback(identifier)  # noqa: SLF001 - as paho's own method does

    def _note_lost(self, disconnected: asyncio.Future[None]) -> None:
        if not self.lost.done() and not disconnected.cancelled():
            error = disconnected.exception()
            self.lost.set_result(str(error) if error else "the connection was closed")


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection


def _encrypted(bare: socket.socket, tls: ssl.SSLContext, host: str) -> ssl.SSLSocket:
    """This encrypts a connection, with whoever can prove to be the host and with nobody else."""
    connection = tls.wrap_socket(bare, server_hostname=host, do_handshake_on_connect=False)
    try:
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.do_handshake()
    except OSError:
        connection.close()
        raise
    return connection


def _last_will(message: Message) -> aiomqtt.Will:
    """This is what the broker publishes, and retains, when the connection ends."""
    return aiomqtt.Will(
        message.topic.text,
        message.to_json(),
        qos=AT_LEAST_ONCE,
        retain=True,
        properties=last_wills_properties(message),
    )
