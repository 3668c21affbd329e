"""What a debugger may say: whole, byte by byte, with a tail, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import GdbstubProtocolError
from qvmi.gdbstub.gate import Gate, Passage
from qvmi.gdbstub.rsp import MAX_PACKET, frame

OK = b"+$OK#9a"
UNKNOWN = b"+$#00"
REFUSED = b"+$E01#a6"

# Literals: what gdb 13.1 sends, and the manual's forms.
LOOKS = [
    b"qSupported:multiprocess+;swbreak+;hwbreak+;qRelocInsn+;fork-events+;vContSupported+",
    b"vMustReplyEmpty",
    b"qXfer:features:read:target.xml:0,ffb",
    b"Hg0",
    b"Hgp1.1",
    b"Hcp1.-1",
    b"?",
    b"qfThreadInfo",
    b"qsThreadInfo",
    b"qThreadExtraInfo,p1.1",
    b"qAttached:1",
    b"qC",
    b"g",
    b"p10",
    b"mffffffff84a18700,40",
    b"Tp1.2",
    b"Z0,ffffffff8434cc50,1",
    b"z2,ffffffff8434cc50,8",
    b"vCont?",
    b"vCont;c:p1.-1",
    b"vCont;s:p1.1;c:p1.-1",
    b"c",
    b"s",
    b"Qqemu.PhyMemMode:1",
]
WRITES = [
    b"Mffffffff8434cc50,4:00000000",
    b"Xffffffff8434cc50,0:",
    b"P0=0000000000000000",
    b"G" + b"0" * 1000,
]
LEAVES = [b"D", b"D;1", b"vKill;1"]
STRANGE = [b"QStartNoAckMode", b"vAttach;2", b"vRun;", b"R00", b"r", b"!", b"vFile:open:2f,0,0"]
STRANGE += [b"kk", b"gg", b"Ffoo", b"bs", b"Z9,0,1", b"qXfer:siginfo:write::0:", b"t0", b""]


@pytest.mark.parametrize("body", LOOKS)
def test_lets_pass_what_looks_and_breaks(body: bytes) -> None:
    assert Gate(may_write=False).feed(frame(body)) == Passage(to_stub=frame(body))


@pytest.mark.parametrize("body", WRITES)
def test_lets_write_only_who_may(body: bytes) -> None:
    assert Gate(may_write=False).feed(frame(body)) == Passage(to_debugger=REFUSED)
    assert Gate(may_write=True).feed(frame(body)) == Passage(to_stub=frame(body))


def test_says_in_words_that_the_monitor_is_not_granted() -> None:
    request = frame(b"qRcmd," + b"quit".hex().encode())
    said = Gate(may_write=False).feed(request)
    assert said.to_stub == b""
    assert b"not granted".hex().encode() in said.to_debugger
    assert said.to_debugger.endswith(b"$OK#9a")
    assert Gate(may_write=True).feed(request) == Passage(to_stub=request)


@pytest.mark.parametrize("may_write", [False, True])
@pytest.mark.parametrize("body", LEAVES)
def test_keeps_to_itself_that_the_debugger_lets_go(body: bytes, *, may_write: bool) -> None:
    gate = Gate(may_write=may_write)
    assert gate.feed(frame(body)) == Passage(to_debugger=OK, left=True)


def test_a_kill_that_waits_for_no_answer_only_leaves() -> None:
    assert Gate(may_write=True).feed(b"$k#6b") == Passage(left=True)


@pytest.mark.parametrize("body", STRANGE)
def test_answers_what_nobody_has_thought_of_as_unknown(body: bytes) -> None:
    assert Gate(may_write=True).feed(frame(body)) == Passage(to_debugger=UNKNOWN)


def test_lets_acknowledgements_and_the_interrupt_pass_at_once() -> None:
    assert Gate(may_write=False).feed(b"+-\x03") == Passage(to_stub=b"+-\x03")


ALL = b"+" + b"+".join(frame(body) for body in [*LOOKS, *WRITES, *STRANGE]) + b"\x03"


def test_understands_the_same_byte_by_byte() -> None:
    whole = Gate(may_write=False).feed(ALL)
    gate, to_stub, to_debugger = Gate(may_write=False), b"", b""
    for byte in ALL:
        passage = gate.feed(bytes([byte]))
        to_stub += passage.to_stub
        to_debugger += passage.to_debugger
    assert (to_stub, to_debugger) == (whole.to_stub, whole.to_debugger)
    assert gate.pending == 0


@pytest.mark.parametrize("tail", [b"$", b"$m0", b"$m0,8#", b"$m0,8#a"])
def test_keeps_the_beginning_of_what_comes_next(tail: bytes) -> None:
    gate = Gate(may_write=False)
    assert gate.feed(frame(b"g") + tail) == Passage(to_stub=frame(b"g"))
    assert gate.pending == len(tail)


def test_a_data_byte_that_looks_like_a_packet_stays_within_its_own() -> None:
    body = b"Xffff,6:a}\x03}\x04k}\x03"  # `#` and `$` as they are escaped
    assert Gate(may_write=True).feed(frame(body)) == Passage(to_stub=frame(body))


@pytest.mark.parametrize("data", [b"hello", b"GET / HTTP/1.1\r\n", b"\0", b"#00"])
def test_bytes_that_no_debugger_sends_end_it(data: bytes) -> None:
    with pytest.raises(GdbstubProtocolError):
        Gate(may_write=True).feed(data)


def test_a_packet_without_end_ends_it() -> None:
    gate = Gate(may_write=True)
    gate.feed(b"$" + b"0" * (MAX_PACKET - 1))
    with pytest.raises(GdbstubProtocolError, match="longer than"):
        gate.feed(b"00")


PIECES = st.sampled_from(
    [b"$", b"#", b"00", b"+", b"\x03", b"k", b"D", b"M0,1:", b"qRcmd,", b"}", b"m0,4", b"vKill;1"]
)


@given(st.lists(PIECES | st.binary(max_size=3)))
def test_whatever_is_said_no_packet_that_writes_or_ends_passes(chunks: list[bytes]) -> None:
    gate, passed = Gate(may_write=False), b""
    try:
        for chunk in chunks:
            passed += gate.feed(chunk).to_stub
    except GdbstubProtocolError:
        pass
    # QEMU begins a packet at each `$`, and ends it two digits behind the next `#`.
    for body in passed.split(b"$")[1:]:
        assert body[:1] not in {b"k", b"D", b"M", b"X", b"P", b"G", b"r", b"R"}
        assert not body.startswith((b"qRcmd", b"vKill"))
