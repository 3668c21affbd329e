"""The note that a kernel keeps for crash dumps: its text, and where it is found."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa
from qvmi.errors import MemoryFault
from qvmi.semantics.linux.image.vmcoreinfo import find_vmcoreinfo, parse_vmcoreinfo
from tests.synthetic.ram import Ram

TEXT = (
    b"OSRELEASE=6.1.0-56-cloud-amd64\n"
    b"BUILD-ID=3b43fad5c0ffee00112233445566778899aabbcc\n"
    b"PAGESIZE=4096\n"
    b"SYMBOL(_stext)=ffffffff81000000\n"
    b"OFFSET(list_head.next)=0\n"
    b"NUMBER(phys_base)=-2097152\n"
    b"NUMBER(VA_BITS)=48\n"
    b"KERNELOFFSET=1c600000\n"
)


def note(text: bytes = TEXT) -> bytes:
    """An ELF note: sizes of name and text, type 0, the name padded to four bytes."""
    return struct.pack("<III", len(b"VMCOREINFO\0"), len(text), 0) + b"VMCOREINFO\0\0" + text


# -------------------------------------------------------------------------------------------- the text


def test_symbols_numbers_and_the_offset_are_read() -> None:
    info = parse_vmcoreinfo(TEXT)
    assert info.symbol("_stext") == 0xFFFF_FFFF_8100_0000
    assert (info.number("phys_base"), info.number("VA_BITS")) == (-2097152, 48)
    assert info.kaslr_offset == 0x1C60_0000
    assert info.build_id == "3b43fad5c0ffee00112233445566778899aabbcc"
    assert info.values["OSRELEASE"] == "6.1.0-56-cloud-amd64"


def test_what_is_missing_is_none() -> None:
    info = parse_vmcoreinfo(b"")
    assert (info.symbol("_stext"), info.number("x"), info.kaslr_offset, info.build_id) == (
        None,
        None,
        None,
        "",
    )


def test_the_text_ends_at_its_first_nul() -> None:
    assert parse_vmcoreinfo(b"A=1\n\0B=2\n").values == {"A": "1"}


def test_a_value_may_hold_more_equals_signs_and_a_line_none() -> None:
    assert parse_vmcoreinfo(b"CONFIG=a=b\nrubbish\n").values == {"CONFIG": "a=b"}


@pytest.mark.parametrize(
    "value", [b"", b"zz", b"0x", b"1" * 5000, b"-", b"ffffffffffffffffff", b"1_", b"\xff\xfe"]
)
def test_a_value_that_is_no_number_of_64_bits_is_none(value: bytes) -> None:
    info = parse_vmcoreinfo(
        b"SYMBOL(a)=%s\nNUMBER(b)=%s\nKERNELOFFSET=%s\n" % (value, value, value)
    )
    assert (info.symbol("a"), info.number("b"), info.kaslr_offset) == (None, None, None)


@pytest.mark.parametrize(
    "value", [b"xyz", b"\x1b[31m", b"ab", b"ABCDEF0123456789", b"0" * 66, b"0" * 41]
)
def test_a_build_id_that_is_none_is_empty(value: bytes) -> None:
    assert parse_vmcoreinfo(b"BUILD-ID=" + value).build_id == ""


@given(st.binary(max_size=400))
def test_any_bytes_are_a_text(text: bytes) -> None:
    info = parse_vmcoreinfo(text)
    assert info.symbol("x") is None or b"SYMBOL(x)" in text


# ---------------------------------------------------------------------------------------- the note in RAM


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def ram(request: pytest.FixtureRequest) -> Ram:
    return Ram(1 << 20, start=0x10_0000, mapped=request.param)


def found(ram: Ram) -> list[tuple[int, str]]:
    return [(info.pa or 0, info.values.get("OSRELEASE", "")) for info in find_vmcoreinfo(ram)]


def test_the_note_is_found_with_its_place(ram: Ram) -> None:
    ram.write(0x12_3450, note())
    assert found(ram) == [(0x12_3450 + 24, "6.1.0-56-cloud-amd64")]


def test_stale_copies_are_found_too(ram: Ram) -> None:
    ram.write(0x11_0000, note(TEXT.replace(b"6.1.0", b"5.10.")))
    ram.write(0x18_0000, note())
    assert [release for _, release in found(ram)] == [
        "5.10.-56-cloud-amd64",
        "6.1.0-56-cloud-amd64",
    ]


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<III", 12, len(TEXT), 0),
        struct.pack("<III", 11, 0, 0),
        struct.pack("<III", 11, 0xFFFF_FFFF, 0),
        struct.pack("<III", 11, (16 << 10) + 1, 0),
    ],
)
def test_a_name_without_a_notes_header_is_no_note(ram: Ram, header: bytes) -> None:
    ram.write(0x12_0000, header + note()[12:])
    assert found(ram) == []


def test_a_note_cut_off_by_the_end_of_ram_is_passed_over(ram: Ram) -> None:
    ram.write(0x20_0000 - 64, note()[:64])
    assert found(ram) == []


def test_a_note_at_the_very_beginning_of_ram_has_no_header(ram: Ram) -> None:
    ram.write(0x10_0000, note()[12:])
    assert found(ram) == []


def test_ram_without_a_note_has_none(ram: Ram) -> None:
    assert found(ram) == []


def test_notes_that_a_program_has_spread_everywhere_are_looked_at_up_to_a_bound(ram: Ram) -> None:
    forged = note(b"OSRELEASE=forged\nSYMBOL(_stext)=ffffffff81000000\n")
    forged += bytes(-len(forged) % 16)
    ram.write(0x10_0000, forged * (ram.size // len(forged)))
    assert 1000 < len(found(ram)) <= 4096


def test_a_note_across_two_copied_parts_is_found_once() -> None:
    ram = Ram(40 << 20, mapped=False)
    middle = 16 << 20
    for at in (middle - 20, 2 * middle):
        ram.write(at, note())
    assert [pa - 24 for pa, _ in found(ram)] == [middle - 20, 2 * middle]


def test_closing_the_memory_during_the_search_faults() -> None:
    ram = Ram(1 << 20)
    for at in (0x1000, 0x8000):
        ram.write(at, note())
    notes = find_vmcoreinfo(ram)
    next(notes)
    ram.close()
    with pytest.raises((MemoryFault, ValueError)):
        list(notes)


def test_the_place_is_unknown_where_the_text_alone_was_read() -> None:
    assert parse_vmcoreinfo(TEXT).pa is None
    assert parse_vmcoreinfo(TEXT, Pa(8)).pa == 8
