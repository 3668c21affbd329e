"""What a client of the RSP gateway says: bytes in, packets out, without I/O.

References: GDB manual, "Remote Protocol: Overview" (frames, escapes), "Packet Acknowledgment",
"Interrupts".

``#00`` between packets is passed over, as QEMU does: whoever takes a conversation over ends with it what was
half said.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from qvmi.gdbstub.rsp import INTERRUPT, checksum

__all__ = ["MAX_BODY", "Damage", "Packet", "Packets", "Signal"]

MAX_BODY: Final = 1 << 13
"""The longest body, in bytes: twice what QEMU 7.2 takes, and what the gateway announces."""

_START, _END, _ESCAPE = b"$"[0], b"#"[0], b"}"[0]
_FLIP: Final = 0x20
_DIGITS: Final = 2
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_SHOWN: Final = 40
_NACK: Final = b"-"[0]
# A run of each is one piece, however long it is: whoever sends nothing else keeps nobody waiting.
_NOTHING: Final = re.compile(rb"(?:\+|#00)+")
_INTERRUPTS: Final = re.compile(b"%b(?:[+%b]|#00)*" % (INTERRUPT, INTERRUPT))
_END_SIZE: Final = len(b"#00")
_HALF_AN_END: Final = frozenset({b"#", b"#0"})


class Signal(Enum):
    """This is a byte that means something outside of a packet."""

    INTERRUPT = "interrupt"
    RETRANSMIT = "retransmit"


@dataclass(frozen=True, slots=True)
class Packet:
    """This is a packet that arrived whole, with escapes undone."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """This is what no debugger sends.

    Args:
        problem: in words.
        fatal: nothing behind it can be understood; else it may be sent again.
    """

    problem: str
    fatal: bool = True


class Packets:
    """This cuts what one client says, however the bytes are split."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """This is the number of bytes kept for a packet that has not ended."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Packet | Signal | Damage]:
        """This takes bytes, and gives what is complete now; behind what is fatal there is nothing."""
        self._buffer += data
        while self._begins():
            piece = self._packet() if self._buffer[0] == _START else self._single()
            if piece is None:
                return
            yield piece
            if isinstance(piece, Damage) and piece.fatal:
                return

    def _begins(self) -> bool:
        """This passes over what means nothing; tells whether anything is left."""
        nothing = _NOTHING.match(self._buffer)
        del self._buffer[: nothing.end() if nothing else 0]
        return bool(self._buffer)

    def _single(self) -> Signal | Damage | None:
        """This takes off what is no packet; None where it may yet become nothing."""
        if interrupts := _INTERRUPTS.match(self._buffer):
            del self._buffer[: interrupts.end()]
            return Signal.INTERRUPT
        if self._buffer[0] == _NACK:
            del self._buffer[0]
            return Signal.RETRANSMIT
        if bytes(self._buffer[:_END_SIZE]) in _HALF_AN_END:
            return None
        return Damage(f"bytes outside of a packet: {bytes(self._buffer[:_SHOWN])!r}")

    def _packet(self) -> Packet | Damage | None:
        """This takes the packet off that the buffer begins with; None where it is not whole."""
        end = self._buffer.find(_END)
        size = len(self._buffer) if end < 0 else end
        if size - 1 > MAX_BODY:
            return Damage(f"a packet longer than {MAX_BODY} bytes")
        if end < 0 or end + _DIGITS >= len(self._buffer):
            return None
        body = bytes(self._buffer[1:end])
        told = bytes(self._buffer[end + 1 : end + 1 + _DIGITS])
        del self._buffer[: end + 1 + _DIGITS]
        if _START in body:
            return Damage("a packet begins within another")
        if not _HEX.issuperset(told) or int(told, 16) != checksum(body):
            return Damage("a packet whose checksum is another", fatal=False)
        return _unescaped(body)


def _unescaped(wire: bytes) -> Packet | Damage:
    first, *parts = wire.split(bytes([_ESCAPE]))
    body = bytearray(first)
    rest = iter(parts)
    for part in rest:
        if part:
            body += bytes([part[0] ^ _FLIP]) + part[1:]
            continue
        # The escaped byte is the escape itself, or there is none.
        following = next(rest, None)
        if following is None:
            return Damage("an escape at the end of a packet")
        body += bytes([_ESCAPE ^ _FLIP]) + following
    return Packet(bytes(body))
