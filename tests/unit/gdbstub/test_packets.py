"""Requests as they are sent, and replies as QEMU sends them."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import GdbstubProtocolError, GdbstubRequestFailed
from qvmi.gdbstub import packets
from qvmi.gdbstub.packets import (
    BreakpointKind,
    Exited,
    Features,
    Resume,
    StopReason,
    StopReply,
    ThreadId,
)
from qvmi.gdbstub.rsp import MAX_PACKET

SECOND = ThreadId(2, 1)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (packets.select_thread(SECOND), b"Hgp1.2"),
        (packets.select_thread(ThreadId(0)), b"Hg0"),
        (packets.select_thread(ThreadId(-1, 1)), b"Hgp1.-1"),
        (packets.select_thread(ThreadId(31)), b"Hg1f"),
        (packets.read_memory(0xFFFFFFFF81000000, 2048), b"mffffffff81000000,800"),
        (packets.write_memory(0x10, b"\x00\xff"), b"M10,2:00ff"),
        (packets.read_register(16), b"p10"),
        (packets.write_register(16, b"\x01\x00"), b"P10=0100"),
        (
            packets.breakpoint_request(BreakpointKind.SOFTWARE, 0x1000, 1, insert=True),
            b"Z0,1000,1",
        ),
        (packets.breakpoint_request(BreakpointKind.ACCESS, 0x1000, 8, insert=False), b"z4,1000,8"),
        (packets.resume_request([(None, Resume.CONTINUE)]), b"vCont;c"),
        (
            packets.resume_request([(SECOND, Resume.STEP), (None, Resume.CONTINUE)]),
            b"vCont;s:p1.2;c",
        ),
        (packets.detach_request(None), b"D"),
        (packets.detach_request(1), b"D;1"),
        (packets.read_document("target.xml", 0, 4091), b"qXfer:features:read:target.xml:0,ffb"),
        (packets.monitor_request("info version"), b"qRcmd,696e666f2076657273696f6e"),
    ],
)
def test_requests_are_written_as_the_manual_says(request_: bytes, body: bytes) -> None:
    assert request_ == body


@pytest.mark.parametrize(
    ("body", "stop"),
    [
        (b"T02thread:01;", StopReply(2, ThreadId(1))),
        (b"T05thread:p01.02;", StopReply(5, SECOND)),
        (b"S05", StopReply(5)),
        (
            b"T05thread:p01.01;watch:ffff888000001000;",
            StopReply(5, ThreadId(1, 1), StopReason.WRITE_WATCHPOINT, 0xFFFF888000001000),
        ),
        (b"T05rwatch:10;", StopReply(5, None, StopReason.READ_WATCHPOINT, 0x10)),
        (
            b"T05thread:1;awatch:10;core:0;",
            StopReply(5, ThreadId(1), StopReason.ACCESS_WATCHPOINT, 0x10),
        ),
        (b"T05swbreak:;thread:1;", StopReply(5, ThreadId(1), StopReason.SOFTWARE_BREAKPOINT)),
        (b"T05hwbreak:;", StopReply(5, None, StopReason.HARDWARE_BREAKPOINT)),
        (b"W00", Exited(0, by_force=False)),
        (b"X09;process:1", Exited(9, by_force=True)),
    ],
)
def test_stop_replies_are_read(body: bytes, stop: StopReply | Exited) -> None:
    assert packets.is_stop(body)
    assert packets.parse_stop(body) == stop


@pytest.mark.parametrize(
    "body", [b"T", b"T5", b"Txx", b"T05watch:;", b"T05watch:xyz;", b"T05thread:p1;", b"S", b"W"]
)
def test_a_stop_reply_without_its_form_is_no_stop(body: bytes) -> None:
    with pytest.raises(GdbstubProtocolError):
        packets.parse_stop(body)


def test_a_thread_is_the_vcpu_of_the_number_before() -> None:
    assert SECOND.vcpu == 1
    assert str(SECOND) == "p1.2"


def test_the_features_of_qemu_7_2_are_read() -> None:
    features = packets.parse_features(
        b"PacketSize=1000;qXfer:features:read+;vContSupported+;multiprocess+"
    )
    assert features.packet_size == 4096
    assert features.most_read == 2048  # QEMU 7.2 answers E22 to one byte more
    assert features.most_written * 2 + len(b"M" + b"f" * 16 + b",7e0:") < 4096
    assert "multiprocess" in features.offered


def test_a_stub_cannot_announce_packets_that_would_be_refused() -> None:
    assert packets.parse_features(b"PacketSize=ffffffffffffffff").packet_size == MAX_PACKET
    with pytest.raises(GdbstubRequestFailed):
        packets.parse_features(b"")
    for body in (b"PacketSize=", b"PacketSize=1", b"PacketSize=-1000", b"multiprocess+"):
        with pytest.raises(GdbstubProtocolError):
            packets.parse_features(body)


def test_the_list_of_vcpus_is_read_part_by_part() -> None:
    request = packets.FIRST_THREADS
    assert packets.parse_threads(request, b"mp01.01") == (ThreadId(1, 1),)
    assert packets.parse_threads(request, b"m1,2,a") == (ThreadId(1), ThreadId(2), ThreadId(10))
    assert packets.parse_threads(request, b"l") == ()
    with pytest.raises(GdbstubProtocolError):
        packets.parse_threads(request, b"m" + b"1," * 5000 + b"1")


def test_memory_is_read_or_the_refusal_is_told() -> None:
    request = packets.read_memory(0, 2)
    assert packets.hex_data(request, b"53ff", 2) == b"S\xff"
    with pytest.raises(GdbstubRequestFailed, match="E14") as told:
        packets.hex_data(request, b"E14", 2)
    assert (told.value.request, told.value.code) == ("m0,2", "E14")
    with pytest.raises(GdbstubRequestFailed, match="not supported"):
        packets.hex_data(request, b"", 2)
    for body in (b"53", b"53fg", b"5 3f", b"53ff00", b"OK"):
        with pytest.raises(GdbstubProtocolError):
            packets.hex_data(request, body, 2)


def test_ok_is_ok_and_nothing_else_is() -> None:
    packets.check_ok(b"D;1", b"OK")
    with pytest.raises(GdbstubRequestFailed, match="E22"):
        packets.check_ok(b"D", b"E22")
    with pytest.raises(GdbstubProtocolError):
        packets.check_ok(b"D", b"ok")


READERS: list[Callable[[bytes], object]] = [
    packets.parse_stop,
    packets.parse_features,
    lambda body: packets.parse_threads(packets.FIRST_THREADS, body),
    lambda body: packets.hex_data(b"m0,2", body, 2),
    lambda body: packets.check_ok(b"D;1", body),
    lambda body: packets.refusal(b"g", body),
]
WORDS = (
    *(b"T05", b"S", b"W00", b"thread:", b"p1.1", b"-1", b";", b"watch:", b"m", b"l", b","),
    *(b"E14", b"PacketSize=", b"1000", b"OK", b"f" * 40, b"\xff"),
)
words = st.sampled_from(WORDS)


@given(st.one_of(st.lists(words, max_size=9).map(b"".join), st.binary(max_size=60)))
def test_any_reply_is_read_or_is_an_error_of_ours(body: bytes) -> None:
    for read in READERS:
        with suppress(GdbstubProtocolError, GdbstubRequestFailed):
            read(body)


def test_features_have_a_largest_write_for_every_packet_size() -> None:
    assert Features(512).most_written == 224
