"""What an MQTT client can learn of a message without reading it.

References: MQTT Version 5.0 (OASIS), 3.3.2.3 PUBLISH Properties, 4.10 Request / Response.
"""

import math
import time
from typing import Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from qvmi.bus.message import Message

__all__ = ["CONTENT_TYPE", "EXPIRY_GRACE_S", "properties_of"]

CONTENT_TYPE: Final = "application/json"

EXPIRY_GRACE_S: Final = 30
"""How long after its deadline a request may still lie at the broker, which drops it without a word: a service
that is late is to refuse it itself, and to count it."""

_UTF_8: Final = 1
"""The payload is text."""


def properties_of(message: Message) -> Properties:
    """This is what goes with a message; qvmi itself believes the topic and the envelope alone.

    A request tells where its answer goes and what it must be marked with, so that any client that may
    read requests can answer one. The broker drops it when its deadline is over.
    """
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho's
    properties.PayloadFormatIndicator = _UTF_8
    properties.ContentType = CONTENT_TYPE
    properties.UserProperty = [
        ("vm", message.vm),
        ("codepack", message.codepack),
        ("kind", message.kind),
        ("version", str(message.version)),
    ]
    if message.deadline is not None:
        properties.ResponseTopic = message.topic.reply.text
        properties.CorrelationData = message.id.encode()
        remaining = max(0, math.ceil(message.deadline - time.time()))
        properties.MessageExpiryInterval = remaining + EXPIRY_GRACE_S
    if message.answers is not None:
        properties.CorrelationData = message.answers.encode()
    return properties
