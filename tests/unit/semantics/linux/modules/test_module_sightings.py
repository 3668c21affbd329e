"""Modules that are found by their form alone, in memory around a kernel made by hand."""

from typing import Final

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.memory.address_space import AddressSpace
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.modules.module_sightings import ModuleSightings
from tests.synthetic.page_tables import PAGE, PageTables
from tests.synthetic.ram import Ram
from tests.synthetic.symbols import KnownSymbols, Layouts

IMAGE: Final = 0xFFFF_FFFF_8100_0000
BASE: Final = 0xFFFF_FFFF_C000_0000
SIZE: Final = 64 * PAGE
RAM: Final = 4 << 20
DATA: Final = 2 << 20
"""Where in RAM the modules are, behind the page tables."""
LAYOUTS: Layouts = {
    "module": (
        0x400,
        {
            "state": 0,
            "list": 8,
            "name": 0x18,
            "mkobj": 0x100,
            "source_list": 0x300,
            "target_list": 0x310,
        },
    ),
    "module_kobject": (0x80, {"mod": 0x60}),
}


class Kernel:
    """A kernel whose list of modules is empty, and memory in which some may lie."""

    def __init__(self, *, holes: tuple[int, ...] = ()) -> None:
        self.ram = Ram(RAM)
        tables = PageTables(self.ram, 0, free=PAGE)
        for offset in range(0, SIZE, PAGE):
            if offset // PAGE not in holes:
                tables.map(BASE + offset, DATA + offset)
        for at in (BASE, BASE + 8):
            self.write(at, BASE)  # the list of modules
        space = AddressSpace(self.ram, Pa(0), geometry=X86_64_4_LEVEL)
        image = KernelImage(
            *(Va(IMAGE), Va(IMAGE + PAGE), Pa(0), Pa(0), X86_64_4_LEVEL),
            page_table_isolation=False,
            extents=(),
            evidence=(),
        )
        symbols = KnownSymbols(LAYOUTS, {"modules": BASE})
        self.sightings = ModuleSightings(space, symbols, image)

    def write(self, va: int, value: int) -> None:
        self.ram.write_u64(va - BASE + DATA, value)

    def hide(self, at: int) -> int:
        """This writes a module that no list has."""
        self.ram.write(at - BASE + DATA + 0x18, b"rootkit".ljust(56, b"\0"))
        self.write(at + 0x160, at)
        return at

    def found(self) -> list[int]:
        walk = self.sightings.all()
        assert walk.gaps == []
        return [row.struct_address for row in walk.rows.values() if row.structure == "memory"]


@pytest.mark.parametrize(
    "offset", [PAGE, 4 * PAGE - 0x40, 4 * PAGE - 0x140, 8 * PAGE, SIZE - 0x400]
)
def test_a_module_is_found_wherever_it_lies_and_once(
    offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.modules.module_sightings._CHUNK", 4 * PAGE)
    kernel = Kernel()
    at = kernel.hide(BASE + offset)
    assert kernel.found() == [at]


def test_behind_a_hole_it_is_found_too() -> None:
    kernel = Kernel(holes=(3, 4))
    first, second = kernel.hide(BASE + PAGE), kernel.hide(BASE + 10 * PAGE)
    assert kernel.found() == [first, second]


def test_no_more_is_read_at_once_than_a_chunk_though_all_is_one_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.modules.module_sightings._CHUNK", 4 * PAGE)
    kernel, sizes = Kernel(), []
    read = AddressSpace.read

    def noted(space: AddressSpace, va: Va, size: int) -> bytes:
        sizes.append(size)
        return read(space, va, size)

    monkeypatch.setattr(AddressSpace, "read", noted)
    assert kernel.found() == []
    assert max(sizes) <= 5 * PAGE


def test_more_page_tables_than_there_can_be_are_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    monkeypatch.setattr("qvmi.arch.paging.MAX_TABLES", 1)
    walk = kernel.sightings.all()
    assert {gap.structure for gap in walk.gaps} == {"memory"}
