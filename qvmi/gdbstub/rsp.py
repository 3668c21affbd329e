"""The frames of GDB's remote serial protocol: bytes in, events out, without I/O.

References: GDB manual, "Remote Protocol: Overview" (frames, escapes, run-length encoding), "Packet
Acknowledgment", "Notification Packets"; QEMU ``gdbstub.c`` (``gdb_read_byte``, ``put_packet_binary``).

Acknowledgements are read and thrown away, and none need be sent: QEMU drops the copy that it keeps for a
retransmission as soon as the next packet begins. QEMU 7.2 knows no ``QStartNoAckMode``.
"""

from collections.abc import Iterator, Sequence
from typing import Final
from zlib import adler32

import msgspec

from qvmi.errors import GdbstubProtocolError

__all__ = [
    "INTERRUPT",
    "MAX_PACKET",
    "Damaged",
    "Decoder",
    "Event",
    "Notification",
    "Retransmit",
    "checksum",
    "escape",
    "frame",
    "frames",
]

MAX_PACKET: Final = 1 << 17
"""The longest body of a packet that is accepted, in bytes, as sent and as unpacked.

QEMU 7.2 announces 4096 (``PacketSize``); a release that announces more is asked for no more than this.
"""

INTERRUPT: Final = b"\x03"
"""Stops a running guest. From QEMU 8.1 on any other byte stops it too, but without a stop reply."""


class Notification(msgspec.Struct, frozen=True, gc=False):
    """This is what the stub says unasked in non-stop mode, and is never an answer."""

    body: bytes


class Damaged(msgspec.Struct, frozen=True, gc=False):
    """This is a packet whose checksum is not that of its bytes.

    Args:
        wire: the body as it came.
        told: the checksum behind it.
    """

    wire: bytes
    told: int


class Retransmit(msgspec.Struct, frozen=True, gc=False):
    """This is the stub's ``-``: what was sent last did not arrive whole."""


Event = bytes | Notification | Damaged | Retransmit
"""What the stub sent; a packet is the bytes of its body, with escapes and runs undone."""

_START, _NOTIFY, _END, _ESCAPE, _RUN = b"$"[0], b"%"[0], b"#"[0], b"}"[0], b"*"[0]
_END_MARK: Final = b"#"
_MAY_FOLLOW: Final = frozenset({b"", b"+", b"$"})
_NOT_PLAIN: Final = (b"}", b"*", b"%", b"-")
_ACK, _NACK = b"+"[0], b"-"[0]
_FLIP: Final = 0x20  # what an escaped byte is XORed with
_DIGITS: Final = 2  # hexadecimal, of the checksum
# A run is written as a printable character: 29 more than the number of repetitions.
_RUN_BIAS: Final = 29
_RUN_CODES: Final = range(32, 127)
_SHOWN: Final = 40  # bytes of what was heard, in errors

# The lower half of Adler-32 is 1 plus the sum of the bytes, modulo 65521: exact for up to so many
# bytes, and five times as fast as sum().
_EXACT: Final = 65520 // 255
_EXACT_ASCII: Final = 65520 // 127


def checksum(wire: bytes) -> int:
    """This is the sum of the bytes of a packet as sent, modulo 256."""
    block = _EXACT_ASCII if wire.isascii() else _EXACT
    if len(wire) <= block:
        return (adler32(wire) - 1) & 0xFF
    parts = [adler32(wire[at : at + block]) - 1 for at in range(0, len(wire), block)]
    return sum(parts) & 0xFF


def escape(data: bytes) -> bytes:
    """This makes arbitrary bytes fit to be sent in the body of a packet."""
    # The escape itself comes first, so that no other's is escaped again.
    for byte in b"}$#*":
        data = data.replace(bytes([byte]), bytes([_ESCAPE, byte ^ _FLIP]))
    return data


def frame(body: bytes) -> bytes:
    """This is a packet as it is sent; the body must hold ``$`` and ``#`` only as `escape` writes them."""
    return b"$%b#%02x" % (body, checksum(body))


def frames(bodies: Sequence[bytes]) -> bytes:
    """These are packets as they are sent, one behind the other."""
    if max(map(len, bodies), default=0) > _EXACT:
        return b"".join(map(frame, bodies))
    return b"".join([b"$%b#%02x" % (body, adler32(body) - 1 & 0xFF) for body in bodies])


class Decoder:
    """This cuts what the stub sends into events, however the bytes are split.

    After it has raised it understands nothing more.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # so much of the buffer has no end of a packet in it
        self._broken: str | None = None

    @property
    def pending(self) -> int:
        """This is the number of bytes kept for a packet that has not ended."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Event]:
        """This takes bytes and gives what is complete now.

        Raises:
            GdbstubProtocolError: bytes that no stub sends. What came before them in the same call
                is lost: the conversation is over.
        """
        if self._broken is not None:
            raise GdbstubProtocolError("any packet", self._broken)
        plain = _cut_plain(bytes(self._buffer) + data) if _END_MARK in data else None
        if plain is not None:
            bodies, rest = plain
            self._buffer[:] = rest
            self._searched = 0
            return [*bodies]
        self._buffer += data
        try:
            return self._cut()
        except GdbstubProtocolError as error:
            self._broken = error.problem
            self._buffer.clear()
            raise

    def _cut(self) -> list[Event]:
        events: list[Event] = []
        buffer, at, size = self._buffer, 0, len(self._buffer)
        while at < size:
            first = buffer[at]
            if first == _ACK:
                at += 1
            elif first in {_START, _NOTIFY}:
                end = buffer.find(_END, max(at + 1, self._searched))
                if end < 0 or end + _DIGITS >= size:
                    self._searched = (end if end >= 0 else size) - at
                    break
                events.append(_event(first, bytes(buffer[at + 1 : end]), self._told(end)))
                at = end + 1 + _DIGITS
                self._searched = 0
            elif first == _NACK:
                events.append(Retransmit())
                at += 1
            else:
                raise _strange(f"bytes outside of a packet: {bytes(buffer[at : at + _SHOWN])!r}")
        del buffer[:at]
        if len(buffer) > MAX_PACKET + 1 + 1 + _DIGITS:
            raise _strange(f"a packet longer than {MAX_PACKET} bytes")
        return events

    def _told(self, end: int) -> int:
        digits = self._buffer[end + 1 : end + 1 + _DIGITS]
        try:
            return _HEX[bytes(digits)]
        except KeyError:
            raise _strange(f"a checksum that is no number: {bytes(digits)!r}") from None


_HEX: Final = {
    digits.encode(): value
    for value in range(256)
    for digits in {f"{value:02x}", f"{value:02X}", f"{value:x}".zfill(2)}
}


def _cut_plain(data: bytes) -> tuple[list[bytes], bytes] | None:
    """This is what QEMU's replies to reads look like, cut three times as fast: ``+$`` body ``#`` sum.

    Returns:
        The bodies and what is left; None where anything else is in the bytes, for `Decoder` to tell.
    """
    if any(mark in data for mark in _NOT_PLAIN):
        return None
    first, *parts = data.split(_END_MARK)
    rest = parts[-1][_DIGITS:]
    if len(parts[-1]) < _DIGITS or rest[:1] not in _MAY_FOLLOW:
        return None
    starts = {first[:2], *[part[_DIGITS : _DIGITS + 2] for part in parts[:-1]]}
    told = b"".join([part[:_DIGITS] for part in parts])
    bodies = [first[2:], *[part[_DIGITS + 2 :] for part in parts[:-1]]]
    lengths = [*map(len, bodies), len(rest)]
    if starts != {b"+$"} or max(lengths) > MAX_PACKET or any(_START in body for body in bodies):
        return None
    if max(lengths) <= _EXACT:
        sums = [summed - 1 & 0xFF for summed in map(adler32, bodies)]
    else:
        sums = [*map(checksum, bodies)]
    return (bodies, rest) if bytes(sums).hex().encode() == told else None


def _event(first: int, wire: bytes, told: int) -> Event:
    if len(wire) > MAX_PACKET:
        raise _strange(f"a packet longer than {MAX_PACKET} bytes")
    if checksum(wire) != told:
        return Damaged(wire, told)
    if _START in wire:
        raise _strange("a packet begins within another")
    body = wire if _ESCAPE not in wire and _RUN not in wire else _unpack(wire)
    return body if first == _START else Notification(body)


def _unpack(wire: bytes) -> bytes:
    """This undoes escapes and runs, from left to right."""
    body = bytearray()
    rest = iter(wire)
    for byte in rest:
        if byte == _ESCAPE:
            body.append(_next(rest, "an escape") ^ _FLIP)
        elif byte == _RUN:
            code = _next(rest, "a run")
            if not body or code not in _RUN_CODES:
                raise _strange(f"a run of {code} that repeats nothing, or has no length")
            body += body[-1:] * (code - _RUN_BIAS)
        else:
            body.append(byte)
        if len(body) > MAX_PACKET:
            raise _strange(f"runs longer than {MAX_PACKET} bytes")
    return bytes(body)


def _next(rest: Iterator[int], what: str) -> int:
    try:
        return next(rest)
    except StopIteration:
        raise _strange(f"{what} at the end of a packet") from None


def _strange(problem: str) -> GdbstubProtocolError:
    return GdbstubProtocolError("any packet", problem)
