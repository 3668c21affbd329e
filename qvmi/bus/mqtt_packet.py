"""The publish as it arrives, read as far as the bus needs it and no further.

paho gives up the connection over a property that it does not like, such as U+FEFF in a text, though the
broker has let it pass: so anybody who may publish could throw out all who read. Here properties other than
the subscription identifier are stepped over.

References: MQTT Version 5.0 (OASIS), 1.5.5 Variable Byte Integer, 2.2.2 Properties, 3.3 PUBLISH.
"""

from dataclasses import dataclass
from typing import Final

from qvmi.errors import BadMessage

__all__ = ["Arrival", "identifier_and_rest", "read_publish"]

_SUBSCRIPTION_IDENTIFIER: Final = 0x0B
_USER_PROPERTY: Final = 0x26
_FIXED: Final = {0x01: 1, 0x02: 4, 0x23: 2}
"""Bytes of payload format indicator, message expiry interval and topic alias."""
_COUNTED: Final = frozenset({0x03, 0x08, 0x09})
"""Content type, response topic and correlation data: two bytes say how long each is."""
_MAX_INTEGER_BYTES: Final = 4
_RETAIN: Final = 0x01
_QOS: Final = 0x06


@dataclass(frozen=True, slots=True)
class Arrival:
    """This is a message as the broker sends it.

    Args:
        topic: where it was published.
        retained: whether the broker, or its publisher, says that it is retained.
        numbers: of the subscriptions it is sent for.
        payload: its bytes.
    """

    topic: str
    retained: bool
    numbers: tuple[int, ...]
    payload: bytes


def identifier_and_rest(header: int, packet: bytes) -> tuple[int, bytes, bytes]:
    """This is a PUBLISH packet's identifier, 0 at QoS 0; its topic; and what follows, from the properties on.

    Raises:
        BadMessage: the packet ends before.
    """
    length = int.from_bytes(packet[:2], "big")
    topic, rest = packet[2 : 2 + length], packet[2 + length :]
    size = 2 if header & _QOS else 0
    if len(packet) < 2 + length + size:
        raise BadMessage("a publish that ends within its header")
    return int.from_bytes(rest[:size], "big"), topic, rest[size:]


def read_publish(header: int, topic: bytes, rest: bytes) -> Arrival:
    """This reads a PUBLISH packet.

    Args:
        header: its first byte.
        topic: as bytes.
        rest: from its properties on.

    Raises:
        BadMessage: it has not the form that the standard gives it.
    """
    size, at = _variable(rest, 0)
    end = at + size
    if end > len(rest):
        raise BadMessage("a publish whose properties are longer than itself")
    numbers = []
    while at < end:
        kind = rest[at]
        at += 1
        if kind == _SUBSCRIPTION_IDENTIFIER:
            number, at = _variable(rest, at)
            numbers.append(number)
        else:
            at = _behind(kind, rest, at)
    if at != end:
        raise BadMessage("a publish whose last property is cut off")
    try:
        text = topic.decode()
    except UnicodeDecodeError as error:
        raise BadMessage(f"a topic that is no text: {error.reason}") from None
    return Arrival(text, bool(header & _RETAIN), tuple(numbers), rest[end:])


def _behind(kind: int, data: bytes, at: int) -> int:
    """This is the place behind a property that is of no interest."""
    if kind in _FIXED:
        return at + _FIXED[kind]
    if kind not in _COUNTED and kind != _USER_PROPERTY:
        raise BadMessage(f"a property {kind:#04x} that no publish has")
    for _ in range(2 if kind == _USER_PROPERTY else 1):
        at += 2 + int.from_bytes(data[at : at + 2], "big")
    return at


def _variable(data: bytes, at: int) -> tuple[int, int]:
    """This reads a variable byte integer: its value, and the place behind it."""
    value = 0
    for place in range(_MAX_INTEGER_BYTES):
        if at + place >= len(data):
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004 - the bit that says that another byte follows
            return value, at + place + 1
    raise BadMessage("a variable byte integer without an end")
