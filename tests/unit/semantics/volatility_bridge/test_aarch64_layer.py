"""Volatility is given both halves of aarch64's address space, each by its own root, or its own error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from volatility3.framework import contexts, exceptions, interfaces

from qvmi.arch.paging import Half, aarch64_geometry
from qvmi.semantics.volatility_bridge.interruption import Interrupted, Interruption
from qvmi.semantics.volatility_bridge.layers import LAYERS, UPPER_ROOT, GuestMemoryLayer
from tests.synthetic.aarch64_tables import DBM, READ_ONLY, Aarch64Tables
from tests.synthetic.ram import Ram

MIB = 1 << 20
PAGE = 4096
KERNEL_ROOT, USER_ROOT = 0x1000, 0x2000
# The same place of either half, where they begin being Documentation/arch/arm64/memory.rst's word.
USER = 0x0000_1234_5678_9000
KERNEL = {48: 0xFFFF_0000_0000_0000 | USER, 52: 0xFFF0_0000_0000_0000 | USER}
BLOCK_AT = {bits: va + 0x4000_0000 & -0x20_0000 for bits, va in KERNEL.items()}
TEXT_OF_KERNEL, TEXT_OF_USER = b"the kernel's", b"the program's"
KERNEL_PAGE, USER_PAGE = 0xF0000, 0xF1000
BLOCK_PA = 0x20_0000

both = pytest.mark.parametrize("va_bits", [48, 52])


class World:
    """RAM of 4 MiB with a page in each half and a block of 2 MiB, and the layers over it."""

    def __init__(self, va_bits: int) -> None:
        self.ram = Ram(4 * MIB)
        self.va_bits = va_bits
        self.kernel_tables = Aarch64Tables(self.ram, KERNEL_ROOT, free=0x3000, va_bits=va_bits)
        self.kernel_tables.map(KERNEL[va_bits], KERNEL_PAGE)
        self.kernel_tables.map(BLOCK_AT[va_bits], BLOCK_PA, shift=21)
        self.user_tables = Aarch64Tables(self.ram, USER_ROOT, free=0x40000, va_bits=va_bits)
        self.entry_of_user = self.user_tables.map(USER, USER_PAGE)
        self.ram.write(KERNEL_PAGE, TEXT_OF_KERNEL)
        self.ram.write(USER_PAGE, TEXT_OF_USER)
        self.interruption = Interruption()
        self.context = contexts.Context()
        memory = GuestMemoryLayer(
            self.context, "layers.p", "p", memory=self.ram, interruption=self.interruption
        )
        self.context.add_layer(memory)

    def layer(self, root: int) -> interfaces.layers.TranslationLayerInterface:
        name = f"v{root}"
        self.context.config[f"layers.{name}.memory_layer"] = "p"
        self.context.config[f"layers.{name}.page_map_offset"] = root
        self.context.config[f"layers.{name}.{UPPER_ROOT}"] = KERNEL_ROOT
        of_geometry = LAYERS[aarch64_geometry(self.va_bits, Half.UPPER).name]
        return of_geometry(self.context, f"layers.{name}", name)

    @property
    def kernel(self) -> interfaces.layers.TranslationLayerInterface:
        return self.layer(KERNEL_ROOT)

    @property
    def program(self) -> interfaces.layers.TranslationLayerInterface:
        return self.layer(USER_ROOT)


@both
def test_a_process_has_its_own_half_and_the_kernels(va_bits: int) -> None:
    program = World(va_bits).program
    assert program.read(USER, len(TEXT_OF_USER)) == TEXT_OF_USER
    assert program.read(KERNEL[va_bits], len(TEXT_OF_KERNEL)) == TEXT_OF_KERNEL


@both
def test_the_kernel_has_no_programs_half(va_bits: int) -> None:
    kernel = World(va_bits).kernel
    assert kernel.read(KERNEL[va_bits], len(TEXT_OF_KERNEL)) == TEXT_OF_KERNEL
    assert not kernel.is_valid(USER)
    with pytest.raises(exceptions.PagedInvalidAddressException) as caught:
        kernel.read(USER, 1)
    assert caught.value.invalid_bits == va_bits


@both
def test_an_address_keeps_its_half_where_volatility_cuts_it(va_bits: int) -> None:
    kernel = World(va_bits).kernel
    cut = KERNEL[va_bits] & kernel.address_mask
    assert cut >> va_bits == 1
    assert kernel.read(cut, len(TEXT_OF_KERNEL)) == TEXT_OF_KERNEL
    assert kernel.canonicalize(cut) == KERNEL[va_bits]
    assert kernel.canonicalize(USER) == USER


@both
def test_a_block_is_one_run(va_bits: int) -> None:
    kernel = World(va_bits).kernel
    at = BLOCK_AT[va_bits] + 3 * PAGE + 5
    assert list(kernel.mapping(at, PAGE)) == [(at, PAGE, BLOCK_PA + 3 * PAGE + 5, PAGE, "p")]
    assert kernel.translate(at) == (BLOCK_PA + 3 * PAGE + 5, "p")


@both
def test_all_that_is_mapped_is_found_without_a_look_at_each_page(va_bits: int) -> None:
    program = World(va_bits).program
    everything = program.mapping(0, program.maximum_address + 1, ignore_errors=True)
    found = [(start & program.address_mask, size, pa) for start, size, pa, _, _ in everything]
    mask = program.address_mask
    assert found == [
        (USER, PAGE, USER_PAGE),
        (KERNEL[va_bits] & mask, PAGE, KERNEL_PAGE),
        (BLOCK_AT[va_bits] & mask, 2 * MIB, BLOCK_PA),
    ]


@pytest.mark.parametrize(
    ("flags", "written"),
    # Linux arch/arm64/include/asm/pgtable.h: by hardware where it may be written and is not read-only,
    # by software where bit 55 says so.
    [(0, False), (READ_ONLY, False), (DBM | READ_ONLY, False), (DBM, True), (1 << 55, True)],
)
def test_a_page_that_was_written_to_is_dirty(flags: int, written: bool) -> None:  # noqa: FBT001 - a parameter
    world = World(48)
    world.ram.write_u64(world.entry_of_user, world.ram.read_u64(world.entry_of_user) | flags)
    assert world.program.is_dirty(USER + 5) is written


def test_there_is_a_layer_for_every_geometry() -> None:
    for bits in range(25, 53):
        for lpa2 in (False, True):
            layer = LAYERS[aarch64_geometry(bits, Half.UPPER, lpa2=lpa2).name]
            assert layer.maximum_address == (1 << bits + 1) - 1


def test_a_walk_that_nobody_waits_for_ends_also_where_it_is_kept() -> None:
    world = World(48)
    program = world.program
    program.translate(USER)
    world.interruption.ask()
    with pytest.raises(Interrupted):
        program.translate(USER)


@both
@given(
    tables=st.lists(
        st.tuples(st.integers(0, 6 * 512 - 1), st.integers(0, (1 << 64) - 1)), max_size=40
    ),
    va=st.integers(0, (1 << 64) - 1),
)
def test_any_tables_give_bytes_or_an_error_of_volatilitys(
    va_bits: int, tables: list[tuple[int, int]], va: int
) -> None:
    world = World(va_bits)
    for index, entry in tables:
        world.ram.write_u64(KERNEL_ROOT + 8 * index, entry)
    for root in (KERNEL_ROOT, USER_ROOT):
        try:
            data = world.layer(root).read(va, 16)
        except exceptions.InvalidAddressException:
            continue
        assert len(data) == 16
