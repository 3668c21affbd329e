"""Frames that a user VM has no business to send: for others' addresses, from others' addresses, with tags.

References: RFC 826 (ARP); RFC 791, 768, 793; RFC 8200; IEEE 802.1Q, 802.1ad.
"""

import ipaddress
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["MARKER", "hostile_frames"]

MARKER: Final = b"QVMI-PROBE"

BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
IPV4_GROUP: Final = "01:00:5e:00:00:01"
IPV6_GROUP: Final = "33:33:00:00:00:01"
SPANNING_TREE: Final = "01:80:c2:00:00:00"

TAGS: Final = (
    b"",
    struct.pack("!HH", 0x8100, 0),
    struct.pack("!HH", 0x8100, 1),
    struct.pack("!HH", 0x8100, 77),
    struct.pack("!HHHH", 0x8100, 1, 0x8100, 77),
    struct.pack("!HHHH", 0x88A8, 1, 0x8100, 77),
)
"""None, priority, VLAN 1 and 77, two stacked ones, and a provider's."""


def hostile_frames(macs: Sequence[str], addresses: Sequence[str], port: int) -> list[bytes]:
    """These come from each card and go to each and to all, tagged or not; one card gets every kind."""
    found = []
    groups = (BROADCAST, IPV4_GROUP, IPV6_GROUP, SPANNING_TREE)
    everything = list(_payloads(macs[0], addresses, port))
    for source in macs:
        for target in (*macs, *groups):
            head = _mac(target) + _mac(source)
            found += [head + tag + everything[0] for tag in TAGS]
            found += [head + payload for payload in everything[-2:]]
        head = _mac(macs[1]) + _mac(source)
        found += [head + payload for payload in everything]
    return [frame.ljust(60, b"\0") for frame in found]


def _payloads(source: str, addresses: Sequence[str], port: int) -> Iterator[bytes]:
    """Each begins with its type: IPv4 and ARP from each address to each other, IPv6, an experiment."""
    for sender, receiver in itertools.permutations(addresses, 2):
        yield b"\x08\x00" + _ipv4(sender, receiver, 17, _udp(port))
        yield b"\x08\x00" + _ipv4(sender, receiver, 6, _syn(sender, receiver, port))
        yield _arp(1, source, sender, receiver)
        yield _arp(2, source, sender, receiver)
    yield b"\x86\xdd" + _ipv6(_udp(port))
    yield b"\x88\xb5" + MARKER


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ip(text: str) -> bytes:
    return ipaddress.IPv4Address(text).packed


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ipv4(sender: str, receiver: str, protocol: int, payload: bytes) -> bytes:
    size = 20 + len(payload)
    head = (
        struct.pack("!BBHHHBBH", 0x45, 0, size, 1, 0, 64, protocol, 0) + _ip(sender) + _ip(receiver)
    )
    return head[:10] + struct.pack("!H", _sum(head)) + head[12:] + payload


def _udp(port: int) -> bytes:
    return struct.pack("!HHHH", 4000, port, 8 + len(MARKER), 0) + MARKER


def _syn(sender: str, receiver: str, port: int) -> bytes:
    head = struct.pack("!HHIIBBHHH", 4001, port, 1, 0, 0x50, 2, 1024, 0, 0)
    pseudo = _ip(sender) + _ip(receiver) + struct.pack("!HH", 6, len(head) + len(MARKER))
    check = struct.pack("!H", _sum(pseudo + head + MARKER))
    return head[:16] + check + head[18:] + MARKER


def _arp(operation: int, source: str, sender: str, receiver: str) -> bytes:
    head = struct.pack("!HHHBBH", 0x0806, 1, 0x0800, 6, 4, operation)
    return head + _mac(source) + _ip(sender) + _mac(BROADCAST) + _ip(receiver) + MARKER


def _ipv6(payload: bytes) -> bytes:
    sender = ipaddress.IPv6Address("fe80::5054:ff:fe00:66").packed
    receiver = ipaddress.IPv6Address("ff02::1").packed
    return struct.pack("!IHBB", 6 << 28, len(payload), 17, 255) + sender + receiver + payload
