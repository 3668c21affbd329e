"""The page walk over aarch64's tables, which are written entry by entry, with 48 and with 52 bits."""

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch import paging
from qvmi.arch.paging import Extent, Half, Permissions, aarch64_geometry
from qvmi.errors import TranslationFault
from tests.synthetic.aarch64_tables import BLOCK, DBM, EL0, PXN, READ_ONLY, UXN, Aarch64Tables
from tests.synthetic.ram import Ram

MIB = 1 << 20
GIB = 1 << 30
ROOT = 0x1000
# Where the kernel's half begins, Documentation/arch/arm64/memory.rst.
FIRST = {48: 0xFFFF_0000_0000_0000, 52: 0xFFF0_0000_0000_0000}
IMAGE = 0xFFFF_8000_8001_0000

both = pytest.mark.parametrize("va_bits", [48, 52])


class Mapped:
    """RAM of 1 MiB with tables of one half in it."""

    def __init__(self, va_bits: int, half: Half = Half.UPPER) -> None:
        self.ram = Ram(MIB)
        self.tables = Aarch64Tables(self.ram, ROOT, free=0x2000, va_bits=va_bits)
        self.geometry = aarch64_geometry(va_bits, half)

    def walk(self, va: int) -> paging.Translation:
        found = paging.walk(self.ram.read, Pa(ROOT), self.geometry, Va(va))
        assert paging.translate(self.ram.read, Pa(ROOT), self.geometry, Va(va)) == found.pa
        return found

    def fault(self, va: int) -> TranslationFault:
        with pytest.raises(TranslationFault) as caught:
            self.walk(va)
        return caught.value

    def rights(self, va: int) -> Permissions:
        return self.walk(va).permissions

    def extents(self, start: int = 0, end: int = 1 << 64) -> list[Extent]:
        found = paging.extents(self.ram.read, Pa(ROOT), self.geometry, Va(start), Va(end))
        return list(found)


@pytest.mark.parametrize(
    ("va_bits", "levels"),
    [
        # DDI 0487, table D8-6: pages of 4 KiB by the size of the input address.
        (25, ["level 2", "level 3"]),
        (39, ["level 1", "level 2", "level 3"]),
        (48, ["level 0", "level 1", "level 2", "level 3"]),
        (52, ["level -1", "level 0", "level 1", "level 2", "level 3"]),
    ],
)
def test_the_width_of_addresses_decides_the_levels(va_bits: int, levels: list[str]) -> None:
    geometry = aarch64_geometry(va_bits, Half.UPPER)
    assert [level.name for level in geometry.levels] == [f"{name} descriptor" for name in levels]


@pytest.mark.parametrize("va_bits", [24, 53, 0, -1])
def test_there_are_no_other_widths(va_bits: int) -> None:
    with pytest.raises(ValueError, match="bits of addresses"):
        aarch64_geometry(va_bits, Half.UPPER)


@both
def test_a_page_is_found_with_every_entry_on_the_way(va_bits: int) -> None:
    mapped = Mapped(va_bits)
    at = mapped.tables.map(IMAGE, 0x5000)
    found = mapped.walk(IMAGE + 0x123)
    assert (found.pa, found.page_size) == (0x5123, 4096)
    assert len(found.steps) == (4 if va_bits == 48 else 5)
    assert found.steps[-1].address == at


@both
@pytest.mark.parametrize("shift", [21, 30])
def test_a_block_is_a_large_page(va_bits: int, shift: int) -> None:
    mapped = Mapped(va_bits)
    va = FIRST[va_bits] + (3 << shift)
    mapped.tables.map(va, 5 << shift, shift=shift)
    found = mapped.walk(va + 0x12345)
    assert (found.pa, found.page_size) == ((5 << shift) + 0x12345, 1 << shift)


def test_blocks_of_512_gib_are_of_lpa2_alone() -> None:
    mapped = {bits: Mapped(bits) for bits in (48, 52)}
    for bits, one in mapped.items():
        one.tables.map(FIRST[bits], 1 << 39, shift=39)
    assert mapped[52].walk(FIRST[52] + 7).pa == (1 << 39) + 7
    assert "level 0 descriptor not present" in str(mapped[48].fault(FIRST[48]))


@both
def test_a_reserved_entry_of_the_last_level_maps_nothing(va_bits: int) -> None:
    mapped = Mapped(va_bits)
    at = mapped.tables.map(IMAGE, 0x5000)
    mapped.ram.write_u64(at, 0x5000 | BLOCK)
    assert mapped.fault(IMAGE).level == "level 3 descriptor"


def test_the_upper_address_bits_of_lpa2_are_where_attributes_were() -> None:
    mapped = Mapped(52)
    mapped.tables.map(IMAGE, 0x000E_1234_5678_9000)
    assert mapped.walk(IMAGE).pa == 0x000E_1234_5678_9000
    # Without it bits 9:8 are the shareability: inner shareable, as Linux maps all of its memory.
    narrow = Mapped(48)
    narrow.tables.map(IMAGE, 0x5000, 3 << 8)
    assert narrow.walk(IMAGE).pa == 0x5000


@both
def test_a_root_translates_its_own_half_alone(va_bits: int) -> None:
    upper, lower = Mapped(va_bits), Mapped(va_bits, Half.LOWER)
    upper.tables.map(FIRST[va_bits], 0x5000)
    lower.tables.map(0, 0x6000)
    assert upper.walk(FIRST[va_bits]).pa == 0x5000
    assert lower.walk(0).pa == 0x6000
    assert f"not in the upper half of {va_bits}-bit" in str(upper.fault(0))
    assert f"not in the lower half of {va_bits}-bit" in str(lower.fault(FIRST[va_bits]))
    for outside in (FIRST[va_bits] - 1, 1 << va_bits, 1 << 63):
        assert upper.fault(outside).level == lower.fault(outside).level == ""


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (UXN, Permissions(writable=True, user=False, executable=True)),
        (PXN | UXN, Permissions(writable=True, user=False, executable=False)),
        (READ_ONLY | UXN, Permissions(writable=False, user=False, executable=True)),
        (READ_ONLY | DBM | PXN, Permissions(writable=True, user=False, executable=False)),
        (EL0 | PXN, Permissions(writable=True, user=True, executable=True)),
        (EL0 | UXN, Permissions(writable=True, user=True, executable=False)),
        (EL0 | READ_ONLY | PXN | UXN, Permissions(writable=False, user=True, executable=False)),
    ],
)
@both
def test_what_a_page_allows(va_bits: int, flags: int, left: Permissions) -> None:
    mapped = Mapped(va_bits)
    mapped.tables.map(IMAGE, 0x5000, flags)
    assert mapped.rights(IMAGE) == left
    assert mapped.extents() == [Extent(Va(IMAGE), Pa(0x5000), 4096, left)]


@pytest.mark.parametrize(
    ("table_flags", "leaf", "left"),
    [
        (1 << 59, UXN, Permissions(writable=True, user=False, executable=False)),
        (1 << 60, UXN, Permissions(writable=True, user=False, executable=True)),
        (1 << 60, EL0 | PXN, Permissions(writable=True, user=True, executable=False)),
        (1 << 61, EL0, Permissions(writable=True, user=False, executable=True)),
        (1 << 62, 0, Permissions(writable=False, user=False, executable=True)),
    ],
    ids=["PXNTable", "UXNTable of the kernel", "UXNTable of a user", "APTable[0]", "APTable[1]"],
)
@both
def test_a_table_denies_for_all_below_it(
    va_bits: int, table_flags: int, leaf: int, left: Permissions
) -> None:
    mapped = Mapped(va_bits)
    mapped.tables.entry_address(IMAGE, table_flags=table_flags)
    mapped.tables.map(IMAGE, 0x5000, leaf)
    assert mapped.rights(IMAGE) == left
    assert [extent.permissions for extent in mapped.extents()] == [left]


@both
def test_neighbours_are_one_extent_whatever_their_pages_are(va_bits: int) -> None:
    mapped = Mapped(va_bits)
    start = FIRST[va_bits] + GIB - 16 * 4096
    mapped.tables.map_run(start, GIB - 16 * 4096, 16 * 4096)
    mapped.tables.map(FIRST[va_bits] + GIB, GIB, shift=30)
    mapped.tables.map(FIRST[va_bits] + 2 * GIB, 2 * GIB, shift=21)
    (found,) = mapped.extents()
    assert (found.va, found.pa, found.size) == (start, GIB - 16 * 4096, 16 * 4096 + GIB + 2 * MIB)


@both
def test_extents_are_cut_to_what_was_asked_for(va_bits: int) -> None:
    mapped = Mapped(va_bits)
    mapped.tables.map_run(IMAGE, 0x8000, 8 * 4096)
    (found,) = mapped.extents(IMAGE + 4096, IMAGE + 3 * 4096)
    assert (found.va, found.pa, found.size) == (IMAGE + 4096, 0x9000, 2 * 4096)


def test_a_top_table_of_few_entries_need_not_begin_a_page() -> None:
    # 52 bits leave 4 for level -1: 16 entries of 8 bytes, at the end of the guest's memory.
    ram = Ram(0x10000)
    tables = Aarch64Tables(ram, 0xFF80, free=0x2000, va_bits=52)
    tables.map(IMAGE, 0x5000)
    geometry = aarch64_geometry(52, Half.UPPER)
    (found,) = paging.extents(ram.read, Pa(0xFF80), geometry, Va(0), Va(1 << 64))
    assert (found.va, found.pa) == (IMAGE, 0x5000)
    assert paging.walk(ram.read, Pa(0xFF80), geometry, Va(IMAGE)).pa == 0x5000
