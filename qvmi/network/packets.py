"""Packets of TCP and UDP in Ethernet frames.

References: IEEE 802.3, 802.1Q, 802.1ad; RFC 791, RFC 8200 (extension headers), RFC 9293, RFC 768.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

__all__ = ["Packet", "parse_frame"]

_ETHERNET: Final = 14
_TAGS: Final = frozenset({0x8100, 0x88A8, 0x9100})
_MAX_TAGS: Final = 2
_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_IPV6_HEADER: Final = 40
_PROTOCOLS: Final = {6: "tcp", 17: "udp"}
_OPTIONS: Final = frozenset({0, 43, 60})
"""Extension headers that say their length in units of 8 bytes: hop-by-hop, routing, destination."""
_FRAGMENT: Final = 44
_MAX_HEADERS: Final = 8
_TCP: Final = struct.Struct(">HH8xBB6x")
_UDP: Final = struct.Struct(">HHHH")


@dataclass(frozen=True, slots=True)
class Packet:
    """This is a packet of TCP or UDP.

    Args:
        protocol: ``tcp`` or ``udp``.
        version: of IP, 4 or 6.
        source: address it comes from.
        source_port: port it comes from.
        target: address it goes to.
        target_port: port it goes to.
        flags: of TCP; 0 for UDP.
        payload: what it carries, as far as it was captured.
    """

    protocol: str
    version: int
    source: str
    source_port: int
    target: str
    target_port: int
    flags: int
    payload: bytes


def parse_frame(frame: bytes) -> Packet | None:
    """This reads a frame; None where it is no whole packet of TCP or UDP, or a later part of one."""
    at, kind = 12, -1
    for _ in range(_MAX_TAGS + 1):
        kind = int.from_bytes(frame[at : at + 2], "big")
        if kind not in _TAGS:
            break
        at += 4
    at += 2
    if kind == _IPV4:
        return _ipv4(frame, at)
    return _ipv6(frame, at) if kind == _IPV6 else None


def _ipv4(frame: bytes, at: int) -> Packet | None:
    header = frame[at : at + 20]
    if len(header) < 20 or header[0] >> 4 != 4:  # noqa: PLR2004 - of IP
        return None
    length = (header[0] & 0xF) * 4
    total = int.from_bytes(header[2:4], "big")
    if int.from_bytes(header[6:8], "big") & 0x1FFF or not 20 <= length <= total:  # noqa: PLR2004 - bytes
        return None
    addresses = str(IPv4Address(header[12:16])), str(IPv4Address(header[16:20]))
    return _transport(frame, (at + length, at + total), header[9], 4, addresses)


def _ipv6(frame: bytes, at: int) -> Packet | None:
    header = frame[at : at + _IPV6_HEADER]
    if len(header) < _IPV6_HEADER or header[0] >> 4 != 6:  # noqa: PLR2004 - of IP
        return None
    end = at + _IPV6_HEADER + int.from_bytes(header[4:6], "big")
    addresses = str(IPv6Address(header[8:24])), str(IPv6Address(header[24:40]))
    kind, at = header[6], at + _IPV6_HEADER
    for _ in range(_MAX_HEADERS):
        if kind not in _OPTIONS and kind != _FRAGMENT:
            return _transport(frame, (at, end), kind, 6, addresses)
        extension = frame[at : at + 8]
        if len(extension) < 8:  # noqa: PLR2004 - bytes
            return None
        if kind == _FRAGMENT and int.from_bytes(extension[2:4], "big") & 0xFFF8:
            return None
        at += 8 if kind == _FRAGMENT else 8 * (extension[1] + 1)
        kind = extension[0]
    return None


def _transport(
    frame: bytes, place: tuple[int, int], kind: int, version: int, addresses: tuple[str, str]
) -> Packet | None:
    protocol = _PROTOCOLS.get(kind)
    body = frame[place[0] : place[1]]
    if protocol == "tcp" and len(body) >= _TCP.size:
        source_port, target_port, offset, flags = _TCP.unpack_from(body)
        skip = (offset >> 4) * 4
    elif protocol == "udp" and len(body) >= _UDP.size:
        source_port, target_port, _, _ = _UDP.unpack_from(body)
        skip, flags = _UDP.size, 0
    else:
        return None
    source, target = addresses
    return Packet(protocol, version, source, source_port, target, target_port, flags, body[skip:])
