"""What an MQTT client can learn of a message without reading it.

References: MQTT Version 5.0 (OASIS), 3.3.2.3 PUBLISH Properties, 4.10 Request / Response.
"""

import functools
import math
import time
from typing import Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qvmi.bus.message import Message
from qvmi.bus.topic import Topic

__all__ = ["CONTENT_TYPE", "EXPIRY_GRACE_S", "last_wills_properties", "properties_of"]

CONTENT_TYPE: Final = "application/json"

EXPIRY_GRACE_S: Final = 30
"""How long after its deadline a request may still lie at the broker, which drops it without a word: a service
that is late is to refuse it itself, and to count it."""

_UTF_8: Final = 1
"""The payload is text."""

_KEPT: Final = 256
"""Topics whose properties are kept packed: more than one program publishes to."""


def properties_of(message: Message) -> Properties:
    """This is what goes with a message; qvmi itself believes the topic and the envelope alone.

    A request tells where its answer goes and what it must be marked with, so that any client that may
    read requests can answer one. The broker drops it when its deadline is over.
    """
    if message.deadline is None and message.answers is None:
        return _usual(message.topic, message.version)
    properties = _common(message.topic, message.version)
    if message.deadline is not None:
        properties.ResponseTopic = message.topic.reply.text
        properties.CorrelationData = message.id.encode()
        remaining = max(0, math.ceil(message.deadline - time.time()))
        properties.MessageExpiryInterval = remaining + EXPIRY_GRACE_S
    if message.answers is not None:
        properties.CorrelationData = message.answers.encode()
    return properties


def last_wills_properties(message: Message) -> Properties:
    """This is what goes with a message that the broker publishes when its sender is gone."""
    return _common(message.topic, message.version, packet=PacketTypes.WILLMESSAGE)


def _common(topic: Topic, version: int, *, packet: int = PacketTypes.PUBLISH) -> Properties:
    """These are the properties that every message has."""
    properties = Properties(packet)  # type: ignore[no-untyped-call] # paho's
    properties.PayloadFormatIndicator = _UTF_8
    properties.ContentType = CONTENT_TYPE
    properties.UserProperty = [
        ("vm", topic.vm),
        ("codepack", topic.codepack),
        ("kind", topic.kind),
        ("version", str(version)),
    ]
    return properties


@functools.lru_cache(maxsize=_KEPT)
def _usual(topic: Topic, version: int) -> Properties:
    """These are the properties of messages that say nothing else."""
    return _Packed(_common(topic, version))


class _Packed(Properties):
    """Properties that are packed once: paho takes 30 us to set them and pack them."""

    def __init__(self, properties: Properties) -> None:
        super().__init__(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's
        packed: bytes = properties.pack()  # type: ignore[no-untyped-call] # paho's
        object.__setattr__(self, "_bytes", packed)  # paho's own takes the names of properties only

    def pack(self) -> bytes:
        """This is what they are sent as."""
        packed: bytes = object.__getattribute__(self, "_bytes")
        return packed
