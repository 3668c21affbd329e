"""How callers are found: literals from the kernel's sources, read by gdb and by the manual's words."""

import struct
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Va
from qvmi.symbols.eh_frame import eh_frame
from qvmi.symbols.layout import Field, NearestSymbol
from qvmi.symbols.orc import OrcBase, OrcKind, OrcLayout, OrcRow, OrcTable, find_orc, read_orc

TEXT = Va(0xFFFFFFFF81000000)
CALL = OrcRow(OrcKind.CALL, OrcBase.SP, 8, OrcBase.UNDEFINED, 0)
PUSHED = OrcRow(OrcKind.CALL, OrcBase.SP, 16, OrcBase.PREVIOUS_SP, -16)
FRAMED = OrcRow(OrcKind.CALL, OrcBase.BP, 16, OrcBase.PREVIOUS_SP, -16)
REGISTERS = OrcRow(OrcKind.REGISTERS, OrcBase.SP, 0, OrcBase.UNDEFINED, 0)
FRAME = OrcRow(OrcKind.INTERRUPT_FRAME, OrcBase.SP, 8, OrcBase.UNDEFINED, 0)
NOTHING = OrcRow(OrcKind.NOTHING, OrcBase.UNDEFINED, 0, OrcBase.UNDEFINED, 0)
END = OrcRow(OrcKind.END, OrcBase.UNDEFINED, 0, OrcBase.UNDEFINED, 0)
OTHER_STACK = OrcRow(OrcKind.CALL, OrcBase.SP_INDIRECT, 8, OrcBase.UNDEFINED, 0)


class OrcTypes:
    """These are the types of a kernel as far as they matter here."""

    def __init__(self, *, kind_bits: int, size: int = 6) -> None:
        self.kind_bits = kind_bits
        self.size = size

    def find(self, name: str) -> Va | None:
        del name
        return None

    def find_field(self, type_name: str, names: Sequence[str]) -> Field | None:
        assert type_name == "orc_entry"
        (name,) = names
        places = {"sp_reg": (4, 0, 4), "bp_reg": (4, 4, 4), "type": (5, 0, self.kind_bits)}
        if self.kind_bits == 2:
            places["end"] = (5, 2, 1)  # in 6.4 it became a value of `type`
        return Field(name, *places[name]) if name in places else None

    def size_of(self, type_name: str) -> int | None:
        assert type_name == "orc_entry"
        return self.size

    def find_enumerator(self, type_name: str, name: str) -> int | None:
        del type_name, name
        return None

    def nearest(self, va: Va) -> NearestSymbol | None:
        del va
        return None


@pytest.mark.parametrize(
    ("kind_bits", "entry", "row"),
    [
        # ORC_TYPE_CALL is 0 up to 6.3 and 2 from 6.4 on; ORC_REG_SP is 5, ORC_REG_PREV_SP 1.
        (2, (16, -16, 0x0015), PUSHED),
        (3, (16, -16, 0x0215), PUSHED),
        (2, (16, -16, 0x0014), FRAMED),
        (2, (0, 0, 0x0105), REGISTERS),
        (3, (0, 0, 0x0305), REGISTERS),
        (2, (8, 0, 0x0205), FRAME),
        (3, (8, 0, 0x0405), FRAME),
        (3, (8, 0, 0x0209), OTHER_STACK),
        (2, (0, 0, 0x0400), END),
        (2, (0, 0, 0x0000), NOTHING),
        (3, (0, 0, 0x0000), NOTHING),
        (3, (0, 0, 0x0100), END),
        (2, (8, 0, 0x0305), NOTHING),  # no such type
        (2, (8, 0, 0x000F), NOTHING),  # no such register
    ],
)
def test_an_entry_says_what_the_kernels_sources_say(
    kind_bits: int, entry: tuple[int, int, int], row: OrcRow
) -> None:
    layout = OrcLayout.of(OrcTypes(kind_bits=kind_bits))
    assert layout is not None
    numbering = layout.numbering([(8, 0, 0x0005), entry])
    assert numbering is not None
    assert layout.row(entry, numbering) == row


@pytest.mark.parametrize(
    ("entry", "row"),
    [
        # As they stand in Linux 7.2: a push behind a function's beginning, and a frame in RBP.
        ((8, 0, 0x0203), CALL),
        ((16, -16, 0x0283), PUSHED),
        ((16, -16, 0x0284), FRAMED),
        ((0, 0, 0x0303), REGISTERS),
        ((8, 0, 0x0209), OTHER_STACK),
    ],
)
def test_registers_are_numbered_as_most_rows_say(entry: tuple[int, int, int], row: OrcRow) -> None:
    layout = OrcLayout.of(OrcTypes(kind_bits=3))
    assert layout is not None
    numbering = layout.numbering([(8, 0, 0x0203), (16, 0, 0x0203), entry, (0, 0, 0)])
    assert numbering is not None
    assert layout.row(entry, numbering) == row
    assert layout.numbering([(8, 0, 0x020B), (8, 0, 0x020B), entry]) is None
    assert layout.numbering([]) is None


def test_a_kernel_with_another_form_of_entries_is_left_alone() -> None:
    assert OrcLayout.of(OrcTypes(kind_bits=2, size=8)) is None


@pytest.mark.parametrize(
    ("va", "entry"),
    [
        (0x0FFF, None),
        (0x1000, (8, 0, 1)),
        (0x10FF, (8, 0, 1)),
        (0x1100, (16, 0, 3)),  # of several at one address the last, as in __orc_find()
        (0xFFFFF, (24, 0, 4)),
    ],
)
def test_the_last_entry_up_to_an_address_is_found_without_reading_all(
    va: int, entry: tuple[int, int, int] | None
) -> None:
    ips, rows = Va(0x8000), Va(0x9000)
    addresses = (0x1000, 0x1100, 0x1100, 0x2000)
    distances = [at - ips - 4 * place for place, at in enumerate(addresses)]
    memory = {
        ips: array("i", distances).tobytes(),
        rows: b"".join(
            struct.pack("<hhH", *one) for one in ((8, 0, 1), (8, 0, 2), (16, 0, 3), (24, 0, 4))
        ),
    }
    read_bytes = 0

    def read(at: Va, size: int) -> bytes:
        nonlocal read_bytes
        read_bytes += size
        start = max(one for one in memory if one <= at)
        return memory[start][at - start : at - start + size]

    assert find_orc(read, OrcTable(ips, rows, len(addresses)), Va(va)) == entry
    assert read_bytes <= 3 * 4 + 6


def test_rows_are_read_in_the_order_of_their_addresses() -> None:
    layout = OrcLayout.of(OrcTypes(kind_bits=2))
    assert layout is not None
    ips, rows = Va(0x1000), Va(0x2000)
    distances = array("i", [0x100 - 0, 0x80 - 4]).tobytes()
    entries = struct.pack("<hhHhhH", 8, 0, 0x0005, 16, -16, 0x0015)
    memory = {ips: distances, rows: entries}
    found = list(read_orc(lambda at, size: memory[at][:size], layout, [OrcTable(ips, rows, 2)]))
    assert found == [(Va(0x1080), PUSHED), (Va(0x1100), CALL)]
    edge = Va((1 << 64) - 8)
    memory[edge] = distances
    wrapped = read_orc(lambda at, size: memory[at][:size], layout, [OrcTable(edge, rows, 2)])
    assert [address for address, _ in wrapped] == [0x78, 0xF8]
    too_many = OrcTable(ips, rows, 1 << 40)
    assert not list(read_orc(lambda at, size: memory[at][:size], layout, [too_many]))


def test_the_section_is_what_the_specifications_say() -> None:
    rows = [(TEXT, CALL), (Va(TEXT + 1), PUSHED), (Va(TEXT + 4), FRAMED), (Va(TEXT + 300), CALL)]
    # By hand, from DWARF 5, 7.24: DW_CFA_def_cfa is 0c, DW_CFA_advance_loc 40 and more, _loc2 03,
    # DW_CFA_offset 80 and more, _extended_sf 11, DW_CFA_same_value 08; rsp is 7, rbp 6, rip 16.
    plain = "14000000 00000000 01 7a5200 01 78 10 01 00 0c0708 9001 0000"
    interrupted = "14000000 00000000 01 7a525300 01 78 10 01 00 0c0708 9001 00"
    described = "00000081ffffffff 0010000000000000 00"
    rules = "0c0708 9001 0806 41 0c0710 9001 110602 43 0c0610 9001 110602 032801 0c0708 9001 0806"
    section = eh_frame([*rows, (Va(TEXT + 0x1000), NOTHING)])
    start = bytes.fromhex(plain + interrupted)
    assert section.startswith(start)
    length, back = struct.unpack_from("<II", section, len(start))
    assert back == len(start) + 4  # the plain one, at the beginning, counted from here
    body = section[len(start) + 8 : len(start) + 4 + length]
    assert body.rstrip(b"\0") == bytes.fromhex(described + rules)
    assert section[len(start) + 4 + length :] == bytes(4)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1 << 20),
            st.builds(
                OrcRow,
                st.sampled_from(OrcKind),
                st.sampled_from([base for base in OrcBase if base > OrcBase.PREVIOUS_SP]),
                st.integers(-(1 << 15), (1 << 15) - 1),
                st.sampled_from([OrcBase.UNDEFINED, OrcBase.PREVIOUS_SP, OrcBase.BP]),
                st.integers(-(1 << 15), (1 << 15) - 1),
            ),
        )
    )
)
def test_any_rows_make_a_section_of_whole_records(rows: list[tuple[int, OrcRow]]) -> None:
    section = eh_frame([(Va(TEXT + at), row) for at, row in sorted(rows)])
    at = records = 0
    while length := struct.unpack_from("<I", section, at)[0]:
        assert length % 8 == 4
        at += 4 + length
        records += 1
    assert at + 4 == len(section)
    assert 2 <= records <= 2 + len(rows)
