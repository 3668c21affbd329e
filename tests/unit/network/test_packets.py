"""Frames are read as tcpdump reads them, and what is none is passed over."""

import random
from ipaddress import ip_address
from pathlib import Path

import pytest

from qvmi.errors import CorruptCapture
from qvmi.network.dns import names_in
from qvmi.network.packets import Packet, parse_frame
from qvmi.network.pcap import PcapStream
from tests.unit.network.frames import as_tcpdump_reads, capture, dns_answer, frame, label_name

GUEST, FAR = ("10.0.2.15", 40000), ("192.0.2.7", 443)
GUEST6, FAR6 = ("fd00::15", 40000), ("2001:db8::7", 443)
NO_OPERATIONS = b"\x01" * 4
HOP_BY_HOP = bytes([6, 0, 1, 4, 0, 0, 0, 0])
GOOD = [
    frame(GUEST, FAR),
    frame(FAR, GUEST, payload=b"content"),
    frame(GUEST, FAR, protocol="udp", payload=b"datagram"),
    frame(GUEST6, FAR6),
    frame(FAR6, GUEST6, protocol="udp", payload=b"x"),
    frame(GUEST, FAR, tags=(0x8100,)),
    frame(GUEST, FAR, tags=(0x88A8, 0x8100)),
    frame(GUEST, FAR, options=NO_OPERATIONS),
    frame(GUEST6, FAR6, options=HOP_BY_HOP),
]


def ends(packet: Packet) -> str:
    return f"{packet.source}.{packet.source_port} > {packet.target}.{packet.target_port}: "


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_ends_are_those_that_tcpdump_prints(tmp_path: Path, good: bytes) -> None:
    (line,) = as_tcpdump_reads(tmp_path, capture([good]))
    packet = parse_frame(good)
    assert packet is not None
    # tcpdump puts the ports of what has extension headers elsewhere.
    ports = f"HBH {packet.source_port} > {packet.target_port}: "
    assert ends(packet) in line or (
        ports in line and f"{packet.source} > {packet.target}: " in line
    )


def test_payload_and_flags_are_read() -> None:
    packet = parse_frame(frame(GUEST, FAR, flags=0x11, payload=b"content"))
    assert packet is not None
    assert (packet.flags, packet.payload, packet.version) == (0x11, b"content", 4)


def test_padding_behind_a_packet_is_no_payload() -> None:
    packet = parse_frame(frame(GUEST, FAR) + bytes(20))
    assert packet is not None
    assert packet.payload == b""


@pytest.mark.parametrize("good", GOOD, ids=range(len(GOOD)))
def test_what_is_cut_off_is_no_packet(good: bytes) -> None:
    whole = parse_frame(good)
    assert whole is not None
    for length in range(len(good) - len(whole.payload) - 20):
        assert parse_frame(good[:length]) is None


def test_later_fragments_and_other_protocols_are_no_packets() -> None:
    later = bytearray(frame(GUEST, FAR))
    later[20:22] = b"\x00\x10"
    icmp = bytearray(frame(GUEST, FAR))
    icmp[23] = 1
    assert parse_frame(bytes(later)) is None
    assert parse_frame(bytes(icmp)) is None
    assert parse_frame(b"\xff" * 12 + b"\x08\x06" + bytes(28)) is None


def test_no_bytes_raise_anything() -> None:
    chosen = random.Random(7)
    for _ in range(4_000):
        bad = bytearray(chosen.choice(GOOD))
        for _ in range(chosen.randrange(1, 6)):
            bad[chosen.randrange(len(bad))] = chosen.choice((0, 0xFF, chosen.randrange(256)))
        parse_frame(bytes(bad[: chosen.randrange(len(bad) + 1)]))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
def test_a_capture_is_read_while_it_grows(order: str, magic: int) -> None:
    stream, found = PcapStream(), []
    for byte in capture(GOOD, order, magic):
        found += list(stream.feed(bytes([byte])))
    assert [one for one, _ in found] == GOOD
    assert [size for _, size in found] == [len(one) for one in GOOD]


@pytest.mark.parametrize(
    "content",
    [
        b"no capture at all" * 3,
        capture([])[:20] + b"\x71\0\0\0",
        capture([]) + b"\xff" * 16,
    ],
)
def test_what_is_no_capture_is_an_error(content: bytes) -> None:
    with pytest.raises(CorruptCapture):
        list(PcapStream().feed(content))


def test_names_are_those_that_tcpdump_prints(tmp_path: Path) -> None:
    message = dns_answer(
        "www.example.org",
        (5, label_name("edge.example.net")),
        (1, ip_address("192.0.2.7").packed),
        (28, ip_address("2001:db8::7").packed),
    )
    answer = frame(("10.0.2.3", 53), ("10.0.2.15", 41000), protocol="udp", payload=message)
    (line,) = as_tcpdump_reads(tmp_path, capture([answer]))
    assert "CNAME edge.example.net., A 192.0.2.7, AAAA 2001:db8::7" in line
    assert names_in(message) == [
        ("192.0.2.7", "www.example.org"),
        ("2001:db8::7", "www.example.org"),
    ]


def test_a_question_and_a_name_that_is_a_circle_tell_no_names() -> None:
    message = bytearray(dns_answer("www.example.org", (1, bytes(4))))
    circle = bytes(message[:12]) + b"\xc0\x0c" + bytes(message[14:])
    message[2] &= 0x7F
    assert names_in(bytes(message)) == []
    assert names_in(circle) == []


@pytest.mark.parametrize(("last", "is_told"), [(61, True), (62, False), (63, False)])
def test_a_name_is_no_longer_than_names_can_be(last: int, *, is_told: bool) -> None:
    name = ".".join(["x" * 63] * 3 + ["y" * last])
    answer = dns_answer(name, (1, ip_address("192.0.2.7").packed))
    assert names_in(answer) == ([("192.0.2.7", name)] if is_told else [])


def test_a_circle_of_labels_makes_no_long_name() -> None:
    message = dns_answer("x" * 60, (1, bytes(4)))
    at = message.index(b"\0", 13)
    assert names_in(message[:at] + b"\xc0\x0c" + message[at + 1 :]) == []


def test_no_message_raises_anything() -> None:
    whole = dns_answer("www.example.org", (5, label_name("a.b")), (1, bytes(4)), (28, bytes(16)))
    chosen = random.Random(11)
    for _ in range(4_000):
        bad = bytearray(whole)
        for _ in range(chosen.randrange(1, 5)):
            bad[chosen.randrange(len(bad))] = chosen.choice((0, 0xC0, 0xFF, chosen.randrange(256)))
        names_in(bytes(bad[: chosen.randrange(len(bad) + 1)]))
