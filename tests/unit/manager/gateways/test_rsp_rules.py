"""What debuggers say to the RSP gateway: cut from the wire, and what each packet means and needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.gdbstub.packets import BreakpointKind, Exited, StopReason, StopReply, ThreadId
from qvmi.gdbstub.rsp import escape, frame
from qvmi.manager.gateways.rsp_dialect import Dialect
from qvmi.manager.gateways.rsp_requests import MAX_BODY, Damage, Packet, Packets, Signal
from qvmi.manager.gateways.rsp_rules import (
    MAX_READ,
    Ask,
    Begin,
    Break,
    Current,
    Introduce,
    Leave,
    List,
    Locate,
    Read,
    Refuse,
    Run,
    Say,
    Select,
    Verdict,
    WhyStopped,
    Write,
    judge,
)
from qvmi.policy import Grant

ANY = ThreadId(0)

# Literals: what gdb 13.1 sends, and the manual's forms.
MEANINGS: list[tuple[bytes, Grant | None, Verdict]] = [
    (b"qSupported:multiprocess+;swbreak+", None, Introduce(multiprocess=True)),
    (b"qSupported", None, Introduce(multiprocess=False)),
    (b"vMustReplyEmpty", None, Begin()),
    (b"Qqemu.PhyMemMode:0", None, Locate(physical=False)),
    (b"Qqemu.PhyMemMode:1", None, Locate(physical=True)),
    (b"qAttached:1", None, Say(b"1")),
    (b"vCont?", None, Say(b"vCont;c;C;s;S")),
    (b"?", Grant.READ_REGISTERS, WhyStopped()),
    (b"qfThreadInfo", Grant.READ_REGISTERS, List(first=True)),
    (b"qsThreadInfo", Grant.READ_REGISTERS, List(first=False)),
    (b"qC", Grant.READ_REGISTERS, Current()),
    (b"Hg0", None, Select(ANY)),
    (b"Hgp1.2", None, Select(ThreadId(2, 1))),
    (b"Hc-1", None, Select(ThreadId(-1), kept=False)),
    (b"Tp1.2", Grant.READ_REGISTERS, Select(ThreadId(2, 1), kept=False)),
    (b"g", Grant.READ_REGISTERS, Ask(b"g")),
    (b"p10", Grant.READ_REGISTERS, Ask(b"p10")),
    (b"qThreadExtraInfo,p1.1", Grant.READ_REGISTERS, Ask(b"qThreadExtraInfo,p1.1")),
    (
        b"qXfer:features:read:target.xml:0,ffb",
        Grant.READ_REGISTERS,
        Ask(b"qXfer:features:read:target.xml:0,ffb"),
    ),
    (b"mffffffff84a18700,40", Grant.READ_MEMORY, Read(0xFFFFFFFF84A18700, 0x40)),
    (b"M1000,2:beef", Grant.WRITE, Write(0x1000, b"\xbe\xef")),
    (b"X1000,3:a$}", Grant.WRITE, Write(0x1000, b"a$}")),
    (b"P0=0500000000000000", Grant.WRITE, Ask(b"P0=0500000000000000")),
    (b"G0000", Grant.WRITE, Ask(b"G0000")),
    (b"Z0,1000,1", Grant.BREAKPOINT, Break(BreakpointKind.SOFTWARE, 0x1000, 1, insert=True)),
    (b"z4,1000,8", Grant.BREAKPOINT, Break(BreakpointKind.ACCESS, 0x1000, 8, insert=False)),
    (b"c", Grant.PAUSE, Run()),
    (b"C05", Grant.PAUSE, Run()),
    (b"s", Grant.PAUSE, Run(ANY, others=False)),
    (b"vCont;c", Grant.PAUSE, Run()),
    (b"vCont;c:p1.-1", Grant.PAUSE, Run()),
    (b"vCont;s:p1.2;c:p1.-1", Grant.PAUSE, Run(ThreadId(2, 1), others=True)),
    (b"vCont;S05:1", Grant.PAUSE, Run(ThreadId(1), others=False)),
    (b"D", None, Leave()),
    (b"D;1", None, Leave()),
    (b"vKill;1", None, Leave()),
    (b"k", None, Leave(answered=False)),
]


LIKE_INFO_VERSION = (b"info version\n", b" info version", b"info versio", b"info version quit")


def test_the_question_for_the_release_is_answered_with_words_that_name_none() -> None:
    """Else a debugger would conclude from it what QEMU's own stub would have told, and a gateway does not."""
    grant, verdict = judge(b"qRcmd," + b"info version".hex().encode())
    assert grant is None
    assert isinstance(verdict, Say)
    assert verdict.answer == b"OK"
    assert verdict.printed
    assert not any(letter.isdigit() for letter in verdict.printed)


@pytest.mark.parametrize(("body", "grant", "verdict"), MEANINGS, ids=lambda one: repr(one)[:30])
def test_a_packet_means_and_needs(body: bytes, grant: Grant | None, verdict: Verdict) -> None:
    assert judge(body) == (grant, verdict)


@pytest.mark.parametrize(
    "body",
    [
        *(b"qRcmd,71756974", b"qRcmd,", b"Qqemu.PhyMemMode:2", b"Qqemu.PhyMemMode:01"),
        *(b"qRcmd,%b" % line.hex().encode() for line in LIKE_INFO_VERSION),
        b"qqemu.PhyMemMode",
        *(b"Qqemu.sstep=7", b"vRun;", b"vAttach;1", b"R00", b"r"),
    ],
)
def test_some_packets_are_refused_whatever_is_granted(body: bytes) -> None:
    grant, verdict = judge(body)
    assert grant is None
    assert isinstance(verdict, Refuse)


@pytest.mark.parametrize(
    "body",
    [
        *(b"QStartNoAckMode", b"vFile:open:2f,0,0", b"!", b"bc", b"bs", b"kk", b"gg", b"t0", b""),
        *(b"Qfoo", b"qXfer:memory-map:read::0,100", b"qXfer:features:write:target.xml:0:", b"A"),
    ],
)
def test_what_nobody_has_thought_of_is_answered_as_unknown(body: bytes) -> None:
    assert judge(body) == (None, Say(b""))


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"m0,0",
            b"m0,%x" % (MAX_READ + 1),
            b"mffffffffffffffff,2",
            b"M0,2:ff",
            b"M0,1:f",
            b"M0,1:gg",
        ),
        *(b"X0,2:a", b"c1000", b"s0", b"Z5,0,1", b"Z0,0", b"vCont;r", b"vCont;t", b"vCont;", b"G0"),
        b"vCont;" + b"c;" * 100 + b"c",
    ],
)
def test_what_is_malformed_is_an_error(body: bytes) -> None:
    assert judge(body)[1] in {Say(b"E22"), Say(b"")}
    assert judge(body)[1] == Say(b"E22") or body.startswith((b"m", b"v"))


def cut(data: bytes) -> list[Packet | Signal | Damage]:
    return list(Packets().feed(data))


def test_packets_and_single_bytes_are_cut_whole_and_byte_by_byte() -> None:
    data = b"+#00#00$g#67+\x03+#00$m0,8#01#00-" + frame(b"X0,4:" + escape(b"$#}*"))
    expected = [
        Packet(b"g"),
        Signal.INTERRUPT,
        Packet(b"m0,8"),
        Signal.RETRANSMIT,
        Packet(b"X0,4:$#}*"),
    ]
    assert cut(data) == expected
    packets = Packets()
    assert [one for byte in data for one in packets.feed(bytes([byte]))] == expected
    assert packets.pending == 0


def test_a_wrong_checksum_may_be_sent_again_and_nothing_else_may() -> None:
    (damage, packet) = cut(b"$g#68$g#67")
    assert isinstance(damage, Damage)
    assert not damage.fatal
    assert packet == Packet(b"g")
    for data in (b"hello", b"\0", b"$$g#67", b"#01", b"#0+", b"##00", b"$" + b"0" * (MAX_BODY + 1)):
        assert [isinstance(one, Damage) and one.fatal for one in cut(data)] == [True], data


PIECES = st.sampled_from(
    [
        *(
            b"$",
            b"#",
            b"00",
            b"+",
            b"-",
            b"\x03",
            b"}",
            b"k",
            b"D",
            b"M0,1:",
            b"qRcmd,",
            b"m0,4",
            b"vKill;1",
        ),
        *map(
            frame, (b"g", b"k", b"vCont;c", b"X0,1:a", b"Z0,0,1", b"qRcmd,71", b"M0,1:00", b"vRun;")
        ),
    ]
)


@given(st.lists(PIECES | st.binary(max_size=3)))
def test_whatever_is_said_nothing_but_known_meanings_comes_of_it(pieces: list[bytes]) -> None:
    packets = Packets()
    for piece in pieces:
        for one in packets.feed(piece):
            if isinstance(one, Packet):
                check_meaning(one.body)
            elif isinstance(one, Damage) and one.fatal:
                return
        assert packets.pending <= MAX_BODY + len(piece) + 4


@given(st.binary(max_size=40) | st.from_regex(rb"[GMPXZzcsCSmpHTDvqQR][0-9a-f,:;=.p-]{0,20}"))
def test_any_body_means_something_harmless_or_needs_a_grant(body: bytes) -> None:
    check_meaning(body)


def check_meaning(body: bytes) -> None:
    """What is sent on is a question about registers, or needs the grant to write."""
    grant, verdict = judge(body)
    if isinstance(verdict, Ask):
        assert grant is (Grant.WRITE if body[:1] in b"GP" else Grant.READ_REGISTERS)
        assert body[:1] in {b"g", b"p", b"G", b"P", b"q"}
        assert b"\n" not in verdict.request
        assert not body.startswith(b"qRcmd")
    needs = {Read: Grant.READ_MEMORY, Write: Grant.WRITE, Break: Grant.BREAKPOINT, Run: Grant.PAUSE}
    assert grant is needs.get(type(verdict), grant)


def test_each_debugger_hears_of_threads_in_its_own_form() -> None:
    plain, multi = Dialect(), Dialect()
    multi.multiprocess = True
    stop = StopReply(5, ThreadId(2, 1))
    assert (plain.stop(stop), multi.stop(stop)) == (b"T05thread:2;", b"T05thread:p1.2;")
    watch = StopReply(5, ThreadId(1, 1), StopReason.WRITE_WATCHPOINT, 0x1000)
    assert plain.stop(watch) == b"T05thread:1;watch:1000;"
    assert plain.stop(Exited(0, by_force=False)) == b"W00"
    assert b"multiprocess+" in multi.features()
    assert b"multiprocess+" not in plain.features()


def test_a_long_list_of_threads_comes_in_parts() -> None:
    threads = tuple(ThreadId(number, 1) for number in range(1, 251))
    one = Dialect()
    parts = [one.threads(threads, first=True)]
    while parts[-1] != b"l":
        parts.append(one.threads(threads, first=False))
    named = b",".join(part[1:] for part in parts[:-1]).split(b",")
    assert [int(name, 16) for name in named] == list(range(1, 251))
    assert max(map(len, parts)) < 4096
