"""Page tables that lead in circles, out of memory, or to garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa, Va
from qvmi.arch.paging import (
    X86_64_4_LEVEL,
    X86_64_5_LEVEL,
    Geometry,
    Half,
    aarch64_geometry,
    extents,
    translate,
    walk,
)
from qvmi.errors import MemoryFault, TranslationFault, UnknownGuest
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.image.kernel_image import find_kernel_image
from tests.hostile.bounds import cpu_seconds, peak_mib
from tests.synthetic.page_tables import LARGE, NO_EXECUTE, PAGE, PRESENT, WRITABLE
from tests.synthetic.ram import Ram
from tests.synthetic.registers import vcpu

PAGES = 16
IMAGE_ENTRY = 511

GEOMETRIES = [
    X86_64_4_LEVEL,
    X86_64_5_LEVEL,
    *(aarch64_geometry(bits, half) for bits in (39, 48, 52) for half in (Half.LOWER, Half.UPPER)),
]
# The addresses that can be: both ends of the address space, or the one that a root translates.
SPANS = {
    "4-level": [(0, 1 << 47), ((1 << 64) - (1 << 47), 1 << 64)],
    "5-level": [(0, 1 << 56), ((1 << 64) - (1 << 56), 1 << 64)],
}
TABLE = 3  # of aarch64
BLOCK = 1

addresses = st.one_of(
    st.sampled_from([number * PAGE for number in range(PAGES)]),
    st.sampled_from([0x7000_0000, 0x000F_FFFF_FFFF_F000, 1 << 30]),
)
entries = st.builds(
    lambda address, flags: address | flags,
    addresses,
    st.sampled_from(
        [
            *(0, PRESENT, PRESENT | WRITABLE, PRESENT | LARGE, PRESENT | NO_EXECUTE),
            *(PRESENT | 0xFFF, TABLE, BLOCK, TABLE | 3 << 8, TABLE | 0xFFF << 52),
        ]
    ),
)
places = st.tuples(st.integers(0, PAGES - 1), st.sampled_from([0, 1, 255, 256, 272, 273, 510, 511]))


def spans(geometry: Geometry) -> list[tuple[int, int]]:
    lower, upper = (0, 1 << geometry.va_bits), ((1 << 64) - (1 << geometry.va_bits), 1 << 64)
    return SPANS.get(geometry.name) or [lower if geometry.half is Half.LOWER else upper]


def garbage(chosen: dict[tuple[int, int], int]) -> Ram:
    ram = Ram(PAGES * PAGE)
    for (page, entry), value in chosen.items():
        ram.write_u64(page * PAGE + 8 * entry, value)
    return ram


@given(
    st.dictionaries(places, entries, max_size=60),
    st.sampled_from(GEOMETRIES),
    st.one_of(
        st.integers(-(1 << 65), 1 << 65),
        st.sampled_from([0, 1 << 47, 1 << 48, 1 << 52, (1 << 64) - (1 << 52), (1 << 64) - 1]),
    ),
)
def test_any_tables_translate_or_fault(
    chosen: dict[tuple[int, int], int], geometry: Geometry, va: int
) -> None:
    ram = garbage(chosen)
    space = AddressSpace(ram, Pa(0), geometry=geometry)
    try:
        found = walk(ram.read, Pa(0), geometry, Va(va))
        assert found.pa == translate(ram.read, Pa(0), geometry, Va(va))
        assert len(found.steps) <= len(geometry.levels)
        space.read(Va(va), 64)
    except MemoryFault:
        pass


@given(st.dictionaries(places, entries, max_size=30), st.sampled_from(GEOMETRIES))
def test_what_any_tables_map_rises_and_is_canonical(
    chosen: dict[tuple[int, int], int], geometry: Geometry
) -> None:
    ram = garbage(chosen)
    behind = 0
    try:
        for count, one in enumerate(extents(ram.read, Pa(0), geometry, Va(0), Va(1 << 64))):
            assert one.size > 0
            assert one.va >= behind
            assert any(low <= one.va < one.va + one.size <= high for low, high in spans(geometry))
            behind = one.va + one.size
            if count > 2000:
                break
    except TranslationFault:
        pass


def self_referencing(ram: Ram, page: int, step: int = 1) -> None:
    """A table whose every so-manyth entry leads to itself."""
    for entry in range(0, 512, step):
        ram.write_u64(page + 8 * entry, page | PRESENT | WRITABLE)


@pytest.mark.parametrize("step", [1, 7])
def test_tables_in_circles_on_many_vcpus_are_no_kernel(step: int) -> None:
    ram = Ram(256 * PAGE)
    for page in range(0, 256 * PAGE, PAGE):
        self_referencing(ram, page, step)
        ram.write_u64(page + 8 * IMAGE_ENTRY, page | PRESENT | WRITABLE)
    vcpus = [vcpu(number * PAGE, index=number) for number in range(256)]
    with cpu_seconds(60), pytest.raises(UnknownGuest) as caught:
        find_kernel_image(vcpus, ram)
    assert len(caught.value.evidence) == 256


def test_the_widest_image_of_single_pages_is_refused_within_bounds() -> None:
    # 512 tables that each map 512 pages, none of which follows the one before it.
    ram = Ram(4 << 20)
    top, middle, leaf = 0x1000, 0x2000, 0x3000
    ram.write_u64(top + 8 * IMAGE_ENTRY, top | PRESENT)
    ram.write_u64(top + 8 * 510, middle | PRESENT)
    for entry in range(512):
        ram.write_u64(middle + 8 * entry, leaf | PRESENT)
        ram.write_u64(leaf + 8 * entry, (511 - entry) * PAGE | PRESENT | WRITABLE)
    with cpu_seconds(20), peak_mib(20), pytest.raises(UnknownGuest):
        find_kernel_image([vcpu(top), vcpu(top, five_levels=True)], ram)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_gigabyte_page_of_garbage_reads_as_garbage_or_faults(geometry: Geometry) -> None:
    ram = Ram(4 * PAGE)
    # All address bits and flags set: x86's largest page, aarch64's block or else its table.
    kind = PRESENT | LARGE | 0xFFF if geometry.half is Half.BOTH else BLOCK | 0xFFC
    for entry in range(512):
        ram.write_u64(8 * entry, 0x000F_FFFF_C000_0000 | kind)
    space = AddressSpace(ram, Pa(0), geometry=geometry)
    for va in (0, 0x7FFF_FFFF_F000, (1 << 64) - 8):
        with pytest.raises(MemoryFault):
            space.read(Va(va), 8)
