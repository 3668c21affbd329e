"""Virtual addresses over page tables and over linear runs."""

from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.errors import MemoryFault, TranslationFault
from qvmi.memory.address_space import STRING_CHUNK, AddressSpace, LinearRange
from tests.synthetic.page_tables import PAGE, PageTables
from tests.synthetic.ram import Ram

SIZE = 1 << 20
ROOT = 0x1000
USER = 0x40_0000
DIRECT = 0xFFFF_8880_0000_0000


class World:
    """RAM whose pages 64 and 80 are neighbours at USER, and that is mapped whole at DIRECT."""

    def __init__(self, *, mapped: bool = True, linear: bool = True) -> None:
        self.ram = Ram(SIZE, mapped=mapped)
        self.tables = PageTables(self.ram, ROOT, free=0x2000)
        self.tables.map(USER, 64 * PAGE)
        self.tables.map(USER + PAGE, 80 * PAGE)
        self.tables.map_run(DIRECT, 0, SIZE)
        runs = [LinearRange(Va(DIRECT), Va(DIRECT + SIZE), Pa(0))] if linear else []
        self.space = AddressSpace(self.ram, Pa(ROOT), geometry=X86_64_4_LEVEL, linear=runs)


def test_a_read_goes_across_pages_that_lie_apart_in_memory() -> None:
    world = World()
    world.ram.write(65 * PAGE - 2, b"ab")
    world.ram.write(80 * PAGE, b"cd")
    assert world.space.read(Va(USER + PAGE - 3), 6) == b"\0abcd\0"


@pytest.mark.parametrize(
    ("va", "size"), [(USER + 2 * PAGE, 1), (USER + 2 * PAGE - 1, 2), (USER - 1, 2)]
)
def test_a_read_of_a_page_that_is_not_mapped_faults(va: int, size: int) -> None:
    with pytest.raises(TranslationFault):
        World().space.read(Va(va), size)


def test_a_page_mapped_to_what_is_no_ram_faults() -> None:
    world = World()
    world.tables.map(USER, 0x7000_0000)
    with pytest.raises(MemoryFault) as caught:
        world.space.read(Va(USER), 1)
    assert caught.value.address == 0x7000_0000


@pytest.mark.parametrize("va", [USER, DIRECT])
def test_nothing_is_read_of_size_zero_and_a_size_below_faults(va: int) -> None:
    space = World().space
    assert space.read(Va(va), 0) == b""
    with pytest.raises(MemoryFault):
        space.read(Va(va), -1)


def test_a_read_does_not_go_on_at_zero_behind_the_last_address() -> None:
    world = World()
    world.tables.map(0xFFFF_FFFF_FFFF_F000, 64 * PAGE)
    world.tables.map(0, 80 * PAGE)
    assert world.space.read(Va((1 << 64) - 4), 4) == bytes(4)
    with pytest.raises(TranslationFault):
        world.space.read(Va((1 << 64) - 4), 8)


@given(st.integers(0, SIZE - 1), st.integers(0, 3 * PAGE))
def test_a_linear_run_reads_what_the_page_tables_read(offset: int, size: int) -> None:
    world = World()
    world.ram.write(0x20000, bytes(range(256)) * 512)
    walked = AddressSpace(world.ram, Pa(ROOT), geometry=X86_64_4_LEVEL)
    size = min(size, SIZE - offset)
    assert world.space.read(Va(DIRECT + offset), size) == walked.read(Va(DIRECT + offset), size)


def test_a_linear_run_is_translated_without_a_walk() -> None:
    world = World()
    world.ram.reads = 0
    assert (world.space.translate(Va(DIRECT + 0x1234)), world.ram.reads) == (0x1234, 0)


def test_a_walk_keeps_its_steps_in_a_linear_run_too() -> None:
    assert len(World().space.walk(Va(DIRECT)).steps) == 4


def test_other_shortcuts_make_another_space_over_the_same_tables() -> None:
    world = World(linear=False)
    run = LinearRange(Va(DIRECT), Va(DIRECT + SIZE), Pa(0))
    other = world.space.with_linear([run])
    world.ram.reads = 0
    assert other.translate(Va(DIRECT + 8)) == 8
    assert world.ram.reads == 0
    assert other.root == ROOT


# ----------------------------------------------------------------------------------------------- strings


@pytest.mark.parametrize("length", [0, 1, STRING_CHUNK - 1, STRING_CHUNK, PAGE - 1])
@pytest.mark.parametrize("before_page_end", [0, 1, 5, STRING_CHUNK])
def test_a_string_ends_at_its_nul_wherever_pages_end(length: int, before_page_end: int) -> None:
    world = World()
    text = b"x" * length + b"\0"
    world.ram.write(65 * PAGE - before_page_end, text[:before_page_end])
    world.ram.write(80 * PAGE, text[before_page_end:])
    found = world.space.read_string(Va(USER + PAGE - before_page_end), 2 * PAGE)
    assert found == b"x" * length


def test_a_string_is_read_no_further_than_its_page_where_the_next_is_missing() -> None:
    world = World()
    world.ram.write(81 * PAGE - 4, b"end\0")
    assert world.space.read_string(Va(USER + 2 * PAGE - 4), 64) == b"end"


def test_a_string_without_an_end_faults() -> None:
    world = World()
    world.ram.write(64 * PAGE, b"x" * PAGE)
    with pytest.raises(MemoryFault, match="no end of the string"):
        world.space.read_string(Va(USER), PAGE)


def test_a_string_that_runs_into_a_missing_page_faults() -> None:
    world = World()
    world.ram.write(81 * PAGE - 4, b"open")
    with pytest.raises(TranslationFault):
        world.space.read_string(Va(USER + 2 * PAGE - 4), 64)


def test_the_nul_may_be_the_last_byte_of_the_limit() -> None:
    world = World()
    world.ram.write(64 * PAGE, b"abc\0")
    assert world.space.read_string(Va(USER), 4) == b"abc"
    with pytest.raises(MemoryFault):
        world.space.read_string(Va(USER), 3)


# ---------------------------------------------------------------------------------------------- unpackers

PAIR = Struct("<QI")


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("linear", [True, False])
def test_an_unpacker_reads_the_same_in_place_by_copy_and_by_walk(
    *, mapped: bool, linear: bool
) -> None:
    world = World(mapped=mapped, linear=linear)
    world.ram.write(0x30000, PAIR.pack(0x1122_3344_5566_7788, 0x99AA_BBCC))
    read = world.space.unpacker(PAIR)
    assert read(DIRECT + 0x30000) == (0x1122_3344_5566_7788, 0x99AA_BBCC)


def test_an_unpacker_reads_across_pages_that_lie_apart() -> None:
    world = World()
    packed = PAIR.pack(1 << 60, 5)
    world.ram.write(65 * PAGE - 4, packed[:4])
    world.ram.write(80 * PAGE, packed[4:])
    assert world.space.unpacker(PAIR)(USER + PAGE - 4) == (1 << 60, 5)


@pytest.mark.parametrize(
    "va", [DIRECT - 1, DIRECT + SIZE - 11, DIRECT + SIZE, 0, -5, 1 << 64, 1 << 70]
)
def test_an_unpacker_faults_where_the_struct_is_not_all_mapped(va: int) -> None:
    with pytest.raises(MemoryFault):
        World().space.unpacker(PAIR)(va)


def test_an_unpacker_reads_the_last_place_of_a_run_in_place() -> None:
    world = World()
    world.ram.write(SIZE - PAIR.size, PAIR.pack(7, 8))
    read = world.space.unpacker(PAIR)
    world.ram.reads = 0
    assert read(DIRECT + SIZE - PAIR.size) == (7, 8)
    assert world.ram.reads == 0


def test_an_unpacker_faults_once_the_memory_is_closed() -> None:
    world = World()
    read = world.space.unpacker(PAIR)
    world.ram.close()
    with pytest.raises(MemoryFault):
        read(DIRECT)
