"""Frames: whole, byte by byte, with a tail, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import GdbstubProtocolError
from qvmi.gdbstub.rsp import (
    MAX_PACKET,
    Damaged,
    Decoder,
    Event,
    Notification,
    Retransmit,
    checksum,
    escape,
    frame,
    frames,
)

# Literals: the GDB manual's examples, and what QEMU 7.2.22 has sent.
HEARD: list[tuple[bytes, list[Event]]] = [
    (b"$T02thread:01;#04", [b"T02thread:01;"]),
    (b"+$OK#9a", [b"OK"]),
    (b"+$#00", [b""]),
    (b"+$E22#a9$#00", [b"E22", b""]),
    (b"+$5553#d2+$E14#aa+$OK#9a", [b"5553", b"E14", b"OK"]),
    (b"$0* #7a", [b"0000"]),
    (b"$ab}\x03c#a6", [b"ab#c"]),
    (b"$ab}\x03c#a0", [Damaged(b"ab}\x03c", 0xA0)]),
    (b"-", [Retransmit()]),
    (b"%Stop:T05#99", [Notification(b"Stop:T05")]),
    (b"+$OK#9A", [b"OK"]),
    (b"++$OK#9a", [b"OK"]),
    (b"$OK#9a+$OK#9a", [b"OK", b"OK"]),
]


def fed(*chunks: bytes) -> list[Event]:
    decoder = Decoder()
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@pytest.mark.parametrize(("wire", "events"), HEARD)
def test_understands_what_came_whole(wire: bytes, events: list[Event]) -> None:
    assert fed(wire) == events


@pytest.mark.parametrize(("wire", "events"), HEARD)
def test_understands_what_came_byte_by_byte(wire: bytes, events: list[Event]) -> None:
    assert fed(*(bytes([byte]) for byte in wire)) == events


@pytest.mark.parametrize(("wire", "events"), HEARD)
@pytest.mark.parametrize("tail", [b"+", b"$", b"+$", b"$12", b"$12#", b"+$12#9", b"%x"])
def test_keeps_the_beginning_of_what_comes_next(
    wire: bytes, events: list[Event], tail: bytes
) -> None:
    decoder = Decoder()
    assert decoder.feed(wire + tail) == events
    assert decoder.pending == len(tail.lstrip(b"+")) or decoder.pending == len(tail)


meaningful = st.one_of(st.sampled_from(list(b"$#}*%+-\x03OET05")), st.integers(0, 255))
bodies = st.lists(st.lists(meaningful, max_size=600).map(bytes), max_size=20)


@given(bodies, st.lists(st.integers(1, 400), min_size=1))
def test_escaped_bodies_come_back_however_they_are_split(
    wanted: list[bytes], steps: list[int]
) -> None:
    wire = b"".join(b"+" + frame(escape(body)) for body in wanted)
    chunks: list[bytes] = []
    at = 0
    while at < len(wire):
        step = steps[len(chunks) % len(steps)]
        chunks.append(wire[at : at + step])
        at += step
    assert fed(*chunks) == wanted


@given(st.lists(st.binary(max_size=700).map(lambda data: data.hex().encode())))
def test_plain_replies_come_back_in_one_piece(wanted: list[bytes]) -> None:
    assert fed(b"".join(b"+" + frame(body) for body in wanted)) == wanted
    assert frames(wanted) == b"".join(map(frame, wanted))


@given(st.binary(max_size=3000))
def test_the_checksum_is_the_sum_of_the_bytes(wire: bytes) -> None:
    assert checksum(wire) == sum(wire) % 256
    assert checksum(b"\xff" * len(wire)) == 255 * len(wire) % 256


@pytest.mark.parametrize("at", [0, 100, 4095])
def test_one_wrong_digit_of_a_long_packet_is_damage(at: int) -> None:
    body = bytearray(b"0123456789abcdef" * 256)
    wire = b"+" + frame(bytes(body))
    damaged = wire[: 2 + at] + bytes([wire[2 + at] ^ 1]) + wire[3 + at :]
    (event,) = fed(damaged)
    assert isinstance(event, Damaged)


@pytest.mark.parametrize(
    ("wire", "problem"),
    [
        (b'{"QMP": {}}', "outside of a packet"),
        (b"+$OK#9a\x00", "outside of a packet"),
        (b"$OK#xy", "checksum that is no number"),
        (b"$O$OK#0d", "begins within another"),
        (b"$*0#5a", "repeats nothing"),
        (b"$0*\x1f#79", "repeats nothing, or has no length"),
        (b"$0*#5a", "a run at the end"),
        (b"$0}#ad", "an escape at the end"),
    ],
)
def test_says_what_no_stub_sends_and_hears_no_more(wire: bytes, problem: str) -> None:
    decoder = Decoder()
    with pytest.raises(GdbstubProtocolError, match=problem):
        decoder.feed(wire)
    with pytest.raises(GdbstubProtocolError, match=problem):
        decoder.feed(b"$OK#9a")
    assert decoder.pending == 0


def test_a_packet_without_end_is_refused() -> None:
    decoder = Decoder()
    assert decoder.feed(b"$" + b"0" * MAX_PACKET) == []
    with pytest.raises(GdbstubProtocolError, match="longer than"):
        decoder.feed(b"0000")


def test_the_longest_packet_is_taken_and_a_longer_one_is_not() -> None:
    assert fed(b"+" + frame(b"0" * MAX_PACKET)) == [b"0" * MAX_PACKET]
    with pytest.raises(GdbstubProtocolError, match="longer than"):
        fed(b"+" + frame(b"0" * (MAX_PACKET + 1)))


def test_runs_cannot_grow_beyond_the_longest_packet() -> None:
    bomb = b"0" + b"*~" * (MAX_PACKET // 97 + 1)
    with pytest.raises(GdbstubProtocolError, match="runs longer than"):
        fed(frame(bomb))


@given(st.lists(st.lists(meaningful, max_size=80).map(bytes), max_size=8))
def test_any_bytes_are_events_or_a_protocol_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for chunk in chunks:
            for event in decoder.feed(chunk):
                assert isinstance(event, bytes | Notification | Damaged | Retransmit)
    except GdbstubProtocolError:
        assert decoder.pending == 0
