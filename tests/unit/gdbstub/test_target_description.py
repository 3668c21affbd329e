"""Target descriptions: QEMU's own, and XML that is made to hurt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.errors import GdbstubProtocolError
from qvmi.gdbstub.target_description import (
    MAX_DOCUMENT_SIZE,
    Register,
    TargetDescription,
    included,
    parse_description,
)
from tests.wire.stub_transcript import StubTranscript

# QEMU 7.2's document for x86-64, to the byte.
ROOT = (
    b'<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
    b'<architecture>i386:x86-64</architecture><xi:include href="core.xml"/></target>'
)
CORE = (
    b'<?xml version="1.0"?><!DOCTYPE feature SYSTEM "gdb-target.dtd">'
    b'<feature name="org.gnu.gdb.i386.core"><flags id="f" size="4"><field name="" start="2"/></flags>'
    b'<reg name="rax" bitsize="64" type="int64" regnum="0"/><!-- reg name="no" -->'
    b'<reg name="rip" bitsize="64" type="code_ptr"/><reg name="eflags" bitsize="32"/>'
    b'<reg name="st0" bitsize="80" type="i387_ext" group="float" regnum="9"/></feature>'
)


def test_registers_are_in_order_with_what_is_told_of_them() -> None:
    description = parse_description({"target.xml": ROOT, "core.xml": CORE})
    core = "org.gnu.gdb.i386.core"
    assert description == TargetDescription(
        "i386:x86-64",
        (
            Register("rax", 64, 0, "int64", "", core),
            Register("rip", 64, 1, "code_ptr", "", core),
            Register("eflags", 32, 2, "int", "", core),
            Register("st0", 80, 9, "i387_ext", "float", core),
        ),
    )
    assert description.by_name["st0"].size == 10


def test_values_are_split_as_the_registers_lie() -> None:
    description = parse_description({"target.xml": ROOT, "core.xml": CORE})
    raw = (1).to_bytes(8, "little") + (2).to_bytes(8, "little") + b"\x46\x02\0\0"
    assert description.split(raw) == {"rax": 1, "rip": 2, "eflags": 0x246}
    with pytest.raises(GdbstubProtocolError, match="end within eflags"):
        description.split(raw[:-1])


@pytest.mark.parametrize(
    ("name", "registers", "g_size"),
    [
        *[("stub_x86_64", 57, 608), ("stub_aarch64", 280, 268)],
        *[("stub_x86_64-10.0", 57, 608), ("stub_aarch64-10.0", 280, 268)],
        *[("stub_x86_64-11.1", 57, 608), ("stub_aarch64-11.1", 280, 268)],
    ],
)
def test_recorded_descriptions_fit_what_the_stub_sends(
    name: str, registers: int, g_size: int
) -> None:
    transcript = StubTranscript.load(name)
    description = parse_description(transcript.documents())
    assert len(description.registers) >= registers
    raw = bytes.fromhex(transcript.reply("g").decode())
    assert len(raw) == g_size
    assert sum(register.size for register in description.registers) >= g_size
    assert len(description.split(raw)) >= 34


def test_includes_are_named_in_order() -> None:
    assert included("target.xml", ROOT) == ("core.xml",)


ENTITY = b'<!DOCTYPE t [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><target>&b;</target>'
OUTSIDE = b'<!DOCTYPE t [<!ENTITY x SYSTEM "file:///etc/passwd">]><target>&x;</target>'


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        (b"", "no element found"),
        (b"<target>", "no element found"),
        (b"\xff\xfe<", "target.xml"),
        (b'<?xml version="1.0" encoding="no-such"?><target/>', "encoding"),
        (ENTITY, "declarations of its own"),
        (OUTSIDE, "declarations of its own"),
        (b"<a>" * 17 + b"</a>" * 17, "without end"),
        (b"<target>" + b"<a/>" * 10, "no element found"),
        (b" " * (MAX_DOCUMENT_SIZE + 1), "more than"),
        (b'<target><xi:include href="target.xml"/></target>', "twice"),
        (b'<target><xi:include href="none.xml"/></target>', "missing"),
        (b'<target><xi:include href="a:0,1#00$k"/></target>', "includes a document named"),
        (b"<target/>", "0 registers"),
        (b'<target><reg name="" bitsize="8"/></target>', "named ''"),
        (b'<target><reg name="a" bitsize="0"/></target>', "no bits"),
        (b'<target><reg name="a" bitsize="99999999"/></target>', "no number up to"),
        (b'<target><reg name="a" bitsize="-8"/></target>', "no number up to"),
        (b'<target><reg name="a" bitsize="8" regnum="4294967296"/></target>', "more than"),
        (b"<target>" + b'<reg name="a" bitsize="8" regnum="0"/>' * 2 + b"</target>", "with 1 numbers"),
        (b"<target>" + b'<reg name="a" bitsize="8"/>' * 16_500 + b"</target>", "without end|more"),
    ],
)  # fmt: skip
def test_says_what_is_wrong_with_a_description(xml: bytes, problem: str) -> None:
    with pytest.raises(GdbstubProtocolError, match=problem):
        parse_description({"target.xml": xml})


FRAGMENTS = (
    *(b"<target>", b"</target>", b"<feature name='a'>", b"</feature>", b"&lt;", b"&a;", b"]]>"),
    *(b"<reg name='a' bitsize='64'/>", b"<reg name='b' regnum='5' bitsize='7'/>", b"<reg/>"),
    *(b"<!DOCTYPE t [<!ENTITY a 'b'>]>", b"<xi:include href='x.xml'/>", b"\x00", b"<![CDATA["),
    *(b"<architecture>", b"</architecture>", b"<?xml version='1.0' encoding='utf-16'?>"),
)
fragments = st.sampled_from(FRAGMENTS)


@given(st.lists(fragments, max_size=12).map(b"".join), st.binary(max_size=40))
def test_any_document_is_a_description_or_a_protocol_error(xml: bytes, tail: bytes) -> None:
    for text in (xml, xml + tail, b"<target>" + xml + b"</target>"):
        try:
            description = parse_description({"target.xml": text, "x.xml": CORE})
        except GdbstubProtocolError:
            continue
        assert description.registers
