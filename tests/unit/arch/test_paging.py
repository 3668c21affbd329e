"""The page walk and the map of what is mapped, over tables written entry by entry."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa, Va
from qvmi.arch import paging
from qvmi.arch.paging import X86_64_4_LEVEL, X86_64_5_LEVEL, Extent, Permissions
from qvmi.errors import TranslationFault
from tests.synthetic.page_tables import NO_EXECUTE, PAGE, PRESENT, PageTables
from tests.synthetic.ram import Ram

MIB = 1 << 20
GIB = 1 << 30
ROOT = 0x1000
ALL = Permissions(writable=True, user=True, executable=True)


class Mapped:
    """RAM of 1 MiB with page tables of so many levels."""

    def __init__(self, levels: int = 4) -> None:
        self.ram = Ram(MIB)
        self.tables = PageTables(self.ram, ROOT, free=0x2000, levels=levels)
        self.geometry = X86_64_5_LEVEL if levels == 5 else X86_64_4_LEVEL

    def walk(self, va: int) -> paging.Translation:
        return paging.walk(self.ram.read, Pa(ROOT), self.geometry, Va(va))

    def fault(self, va: int) -> TranslationFault:
        with pytest.raises(TranslationFault) as caught:
            self.walk(va)
        with pytest.raises(TranslationFault) as again:
            paging.translate(self.ram.read, Pa(ROOT), self.geometry, Va(va))
        assert str(again.value) == str(caught.value)
        return caught.value

    def way(self, va: int) -> tuple[list[paging.Step], TranslationFault | None]:
        steps = []
        try:
            for step in paging.steps(self.ram.read, Pa(ROOT), self.geometry, Va(va)):
                steps.append(step)  # noqa: PERF402 - what was read before the fault counts
        except TranslationFault as fault:
            return steps, fault
        return steps, None

    def extents(self, start: int = 0, end: int = 1 << 64) -> list[Extent]:
        found = paging.extents(self.ram.read, Pa(ROOT), self.geometry, Va(start), Va(end))
        return list(found)


# ------------------------------------------------------------------------------------------ one address


@pytest.mark.parametrize(
    ("levels", "va", "indexes"),
    [
        (4, 0x0000_7FFF_FFFF_F123, {"PML4E": 255, "PDPTE": 511, "PDE": 511, "PTE": 511}),
        (4, 0xFFFF_8000_0020_1ABC, {"PML4E": 256, "PDPTE": 0, "PDE": 1, "PTE": 1}),
        (
            5,
            0xFF11_0000_4060_1000,
            {"PML5E": 273, "PML4E": 0, "PDPTE": 1, "PDE": 3, "PTE": 1},
        ),
    ],
)
def test_each_entry_is_found_by_its_nine_bits(
    levels: int, va: int, indexes: dict[str, int]
) -> None:
    mapped = Mapped(levels)
    mapped.tables.map(va & -PAGE, 0x8000)
    steps = mapped.walk(va).steps
    assert {step.level: (step.address & 0xFFF) // 8 for step in steps} == indexes


def test_the_steps_lead_from_the_root_to_the_page() -> None:
    mapped = Mapped()
    leaf = mapped.tables.map(0x40_0000, 0x9000)
    steps = mapped.walk(0x40_0000).steps
    assert steps[0].address == ROOT
    assert (steps[-1].address, steps[-1].entry) == (leaf, mapped.ram.read_u64(leaf))


@pytest.mark.parametrize(
    ("size", "va", "pa", "offset"),
    [
        (PAGE, 0x40_0000, 0x7000, 0xABC),
        (2 * MIB, 0x40_0000, 0x1234_0000_0000, 0x1F_FABC),
        (GIB, 0xFFFF_8880_4000_0000, 0x8_4000_0000, 0x3FFF_FABC),
    ],
)
@pytest.mark.parametrize("levels", [4, 5])
def test_a_page_of_each_size_keeps_the_offset(
    levels: int, size: int, va: int, pa: int, offset: int
) -> None:
    mapped = Mapped(levels)
    mapped.tables.map(va, pa, size)
    found = mapped.walk(va + offset)
    assert (found.pa, found.page_size) == (pa + offset, size)


@pytest.mark.parametrize("size", [PAGE, 2 * MIB, GIB])
def test_translate_says_what_walk_says(size: int) -> None:
    mapped = Mapped()
    mapped.tables.map(0x4000_0000, 0x8000_0000, size)
    va = Va(0x4000_0000 + size - 1)
    found = paging.translate(mapped.ram.read, Pa(ROOT), mapped.geometry, va)
    assert found == mapped.walk(va).pa == 0x8000_0000 + size - 1


def test_the_attribute_bits_of_a_large_page_are_no_address_bits() -> None:
    mapped = Mapped()
    leaf = mapped.tables.map(0x4000_0000, 0x4000_0000, GIB)
    pat = 1 << 12  # table 4-16: bit 12 selects the memory type of a 1-GByte page
    mapped.ram.write_u64(leaf, mapped.ram.read_u64(leaf) | pat)
    assert mapped.walk(0x4000_0000).pa == 0x4000_0000


def test_flags_and_process_context_in_the_root_register_are_no_address_bits() -> None:
    mapped = Mapped()
    mapped.tables.map(0x1000, 0x9000)
    found = paging.walk(
        mapped.ram.read, Pa(ROOT | 0x8000_0000_0000_0FFF), mapped.geometry, Va(0x1000)
    )
    assert found.pa == 0x9000


@pytest.mark.parametrize("denied", ["writable", "user", "executable"])
@pytest.mark.parametrize("depth", range(4))
def test_a_right_denied_at_any_level_is_denied(depth: int, denied: str) -> None:
    mapped = Mapped()
    va = 0x40_0000
    mapped.tables.map(va, 0x9000, user=True)
    bit = {"writable": 1 << 1, "user": 1 << 2, "executable": NO_EXECUTE}[denied]
    at = mapped.walk(va).steps[depth].address
    mapped.ram.write_u64(at, mapped.ram.read_u64(at) ^ bit)
    rights = mapped.walk(va).permissions
    assert {name for name in ("writable", "user", "executable") if not getattr(rights, name)} == {
        denied
    }


# ---------------------------------------------------------------------------------------- no such address


@pytest.mark.parametrize(
    ("levels", "va"),
    [
        (4, 0x0000_8000_0000_0000),
        (4, 0xFFFF_7FFF_FFFF_FFFF),
        (5, 0x0100_0000_0000_0000),
        (5, 0xFEFF_FFFF_FFFF_FFFF),
        (4, 1 << 64),
        (4, (1 << 64) + 0x40_0000),
        (4, -0x1000),
    ],
)
def test_an_address_that_is_not_canonical_faults_before_any_table_is_read(
    levels: int, va: int
) -> None:
    mapped = Mapped(levels)
    fault = mapped.fault(va)
    assert (fault.level, fault.table, mapped.ram.reads) == ("", None, 0)


@pytest.mark.parametrize(
    ("levels", "va"),
    [(4, 0x0000_7FFF_FFFF_F000), (4, -(1 << 47) % (1 << 64)), (5, -(1 << 56) % (1 << 64))],
)
def test_the_last_canonical_addresses_are_walked(levels: int, va: int) -> None:
    mapped = Mapped(levels)
    mapped.tables.map(va, 0x9000)
    assert mapped.walk(va).pa == 0x9000


@pytest.mark.parametrize(
    ("depth", "level"), list(enumerate(["PML5E", "PML4E", "PDPTE", "PDE", "PTE"]))
)
def test_says_at_which_level_the_walk_stopped(depth: int, level: str) -> None:
    mapped = Mapped(5)
    mapped.tables.map(0x40_0000, 0x9000)
    at = mapped.walk(0x40_0000).steps[depth].address
    entry = mapped.ram.read_u64(at) & ~PRESENT
    mapped.ram.write_u64(at, entry)
    fault = mapped.fault(0x40_0000)
    assert (fault.level, fault.entry, fault.table) == (level, entry, at)
    assert level in str(fault)


@pytest.mark.parametrize("depth", range(5))
def test_the_way_to_a_fault_ends_with_the_entry_that_stopped_the_walk(depth: int) -> None:
    mapped = Mapped(5)
    mapped.tables.map(0x40_0000, 0x9000)
    whole = mapped.walk(0x40_0000).steps
    stop = replace(whole[depth], entry=whole[depth].entry & ~PRESENT)
    mapped.ram.write_u64(stop.address, stop.entry)
    way, fault = mapped.way(0x40_0000)
    assert way == [*whole[:depth], stop]
    assert str(fault) == str(mapped.fault(0x40_0000))


def test_the_way_to_a_page_is_that_of_the_walk() -> None:
    mapped = Mapped()
    mapped.tables.map(0x40_0000, 0x20_0000, 2 * MIB)
    assert mapped.way(0x40_0123) == (list(mapped.walk(0x40_0123).steps), None)


def test_there_is_no_way_to_an_address_that_is_not_canonical() -> None:
    way, fault = Mapped().way(1 << 63)
    assert way == []
    assert "not canonical" in str(fault)


def test_a_fault_says_that_an_address_cannot_be_translated() -> None:
    assert str(Mapped().fault(0x40_0000)).startswith("cannot translate virtual address 0x400000: ")


@pytest.mark.parametrize("depth", range(3))
def test_a_table_outside_of_memory_faults_at_its_level(depth: int) -> None:
    mapped = Mapped()
    mapped.tables.map(0x40_0000, 0x9000)
    at = mapped.walk(0x40_0000).steps[depth].address
    mapped.ram.write_u64(at, 0xDEAD_0000_0000 | PRESENT)
    fault = mapped.fault(0x40_0000)
    assert fault.level == ["PDPTE", "PDE", "PTE"][depth]
    assert "outside of the guest's memory" in str(fault)


def test_a_root_outside_of_memory_faults_at_the_top() -> None:
    with pytest.raises(TranslationFault, match="PML5E") as caught:
        paging.walk(Ram(PAGE).read, Pa(0x7000_0000), X86_64_5_LEVEL, Va(0))
    assert caught.value.level == "PML5E"


# ------------------------------------------------------------------------------------------ what is mapped


def test_nothing_mapped_is_no_extents() -> None:
    assert Mapped().extents() == []


def test_pages_that_follow_each_other_in_both_spaces_are_one_extent() -> None:
    mapped = Mapped()
    for number in range(3):
        mapped.tables.map(0x40_0000 + number * PAGE, 0x5000 + number * PAGE, user=True)
    assert mapped.extents() == [Extent(Va(0x40_0000), Pa(0x5000), 3 * PAGE, ALL)]


def test_pages_of_different_sizes_are_joined_across_tables() -> None:
    mapped = Mapped()
    mapped.tables.map(0x4000_0000 - PAGE, 0x8000_0000 - PAGE)
    mapped.tables.map(0x4000_0000, 0x8000_0000, 2 * MIB)
    mapped.tables.map(0x4020_0000, 0x8020_0000)
    (found,) = mapped.extents()
    assert (found.va, found.pa, found.size) == (
        0x4000_0000 - PAGE,
        0x8000_0000 - PAGE,
        2 * MIB + 2 * PAGE,
    )


@pytest.mark.parametrize(
    ("va", "pa", "rights"),
    [
        (0x40_1000, 0x9000, {}),  # elsewhere in memory
        (0x40_2000, 0x6000, {}),  # a hole between
        (0x40_1000, 0x6000, {"writable": False}),
        (0x40_1000, 0x6000, {"executable": False}),
        (0x40_1000, 0x6000, {"user": True}),
    ],
)
def test_an_extent_ends_where_place_or_rights_change(
    va: int, pa: int, rights: dict[str, bool]
) -> None:
    mapped = Mapped()
    mapped.tables.map(0x40_0000, 0x5000)
    mapped.tables.map(va, pa, **rights)
    assert [(one.va, one.pa) for one in mapped.extents()] == [(0x40_0000, 0x5000), (va, pa)]


def test_addresses_of_the_upper_half_are_canonical() -> None:
    mapped = Mapped()
    mapped.tables.map(0xFFFF_FFFF_FFFF_F000, 0x5000)
    mapped.tables.map(0xFFFF_8000_0000_0000, 0x6000)
    assert [one.va for one in mapped.extents()] == [0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_F000]


@pytest.mark.parametrize("size", [PAGE, 2 * MIB, GIB])
def test_only_what_lies_in_the_range_is_told(size: int) -> None:
    mapped = Mapped()
    mapped.tables.map(0x4000_0000, 0x8000_0000, size)
    inside = mapped.extents(0x4000_0000 + 0x400, 0x4000_0000 + 0x800)
    assert [(one.va, one.pa, one.size) for one in inside] == [(0x4000_0400, 0x8000_0400, 0x400)]
    assert mapped.extents(0, 0x4000_0000) == mapped.extents(0x4000_0000 + size) == []


def test_a_table_outside_of_memory_maps_nothing() -> None:
    mapped = Mapped()
    mapped.tables.map(0x40_0000, 0x5000)
    mapped.ram.write_u64(mapped.tables.entry_address(0x4000_0000, 30), 0xDEAD_0000_0000 | PRESENT)
    assert [one.va for one in mapped.extents()] == [0x40_0000]


def test_rights_denied_above_hold_for_all_pages_below() -> None:
    mapped = Mapped()
    mapped.tables.map(0x40_0000, 0x5000)
    top = mapped.ram.read_u64(ROOT)
    mapped.ram.write_u64(ROOT, (top | NO_EXECUTE) & ~2)
    assert mapped.extents()[0].permissions == Permissions(
        writable=False, user=False, executable=False
    )


pages = st.lists(
    st.tuples(st.integers(0, 600), st.integers(0, 20), st.booleans()),
    max_size=30,
    unique_by=lambda p: p[0],
)


@given(pages, st.sampled_from([4, 5]))
def test_extents_and_walks_agree_about_every_page(
    chosen: list[tuple[int, int, bool]], levels: int
) -> None:
    mapped = Mapped(levels)
    base = 0xFFFF_FFFF_801F_0000  # its pages lie in two tables
    for place, frame, writable in chosen:
        mapped.tables.map(base + place * PAGE, frame * PAGE, writable=writable)
    walked = {place: mapped.walk(base + place * PAGE).pa for place, _, _ in chosen}
    told = {
        (one.va + offset - base) // PAGE: one.pa + offset
        for one in mapped.extents(base)
        for offset in range(0, one.size, PAGE)
    }
    assert told == walked


def test_tables_that_lead_to_themselves_are_given_up() -> None:
    ram = Ram(4 * PAGE)
    for entry in range(0, 512, 16):
        ram.write_u64(ROOT + 8 * entry, ROOT | PRESENT)
    found = paging.extents(ram.read, Pa(ROOT), X86_64_4_LEVEL, Va(0), Va(1 << 64))
    with pytest.raises(TranslationFault, match=f"more than {paging.MAX_TABLES} page tables"):
        sum(1 for _ in found)
    assert ram.reads == paging.MAX_TABLES
