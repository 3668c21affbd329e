"""A capture file that is read while it grows.

References: the IETF's draft-ietf-opsawg-pcap ("PCAP Capture File Format"); QEMU ``net/dump.c``.
"""

import struct
from collections.abc import Iterator
from typing import Final

from qvmi.errors import CorruptCapture

__all__ = ["PcapStream"]

_MAGICS: Final = {
    b"\xd4\xc3\xb2\xa1": "<",
    b"\xa1\xb2\xc3\xd4": ">",
    b"\x4d\x3c\xb2\xa1": "<",
    b"\xa1\xb2\x3c\x4d": ">",
}
"""The first four bytes, in either order, for times in micro- or nanoseconds, which are not looked at: QEMU
counts them by the guest's clock."""
_HEADER: Final = 24
_RECORD: Final = 16
_ETHERNET: Final = 1
_MAX_PACKET: Final = 1 << 18
"""Bytes of a packet; QEMU writes at most 64 KiB of one."""


class PcapStream:
    """This takes the bytes of a capture as they come, and gives the packets in them.

    What is not there yet of a packet is waited for.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._order = ""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """These are the packets that are whole now, each with the size that it had on the wire.

        Raises:
            CorruptCapture: it is no capture of Ethernet, or a packet cannot be.
        """
        self._pending += data
        if not self._order and len(self._pending) >= _HEADER:
            self._begin()
        at = 0
        try:
            while self._order and len(self._pending) - at >= _RECORD:
                held, size = struct.unpack_from(f"{self._order}II", self._pending, at + 8)
                if held > _MAX_PACKET:
                    raise CorruptCapture(f"a packet of {held} bytes")
                end = at + _RECORD + held
                if end > len(self._pending):
                    break
                yield bytes(self._pending[at + _RECORD : end]), size
                at = end
        finally:
            del self._pending[:at]

    def _begin(self) -> None:
        self._order = _MAGICS.get(bytes(self._pending[:4]), "")
        if not self._order:
            raise CorruptCapture("it does not begin as a capture")
        (kind,) = struct.unpack_from(f"{self._order}I", self._pending, 20)
        if kind & 0xFFFF != _ETHERNET:
            raise CorruptCapture(f"a capture of link type {kind & 0xFFFF}, not of Ethernet")
        del self._pending[:_HEADER]
