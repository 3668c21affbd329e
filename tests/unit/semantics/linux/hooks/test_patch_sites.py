"""Tables of sites that modules of a kernel made by hand say they have."""

import struct
from typing import Final

import pytest

from qvmi.semantics.linux.hooks.extable import KnownCode
from qvmi.semantics.linux.hooks.patch_sites import PatchSites
from qvmi.semantics.linux.modules.module import Modules
from tests.synthetic.kernel_memory import LAYOUTS, KernelMemory

BASE: Final = 0xFFFF_FFFF_C000_0000
_, MEMBERS = LAYOUTS["module"]
WITH_LABELS: Final = {
    **LAYOUTS,
    "module": (0x300, {**MEMBERS, "jump_entries": 0x200, "num_jump_entries": 0x208}),
}


class Kernel:
    """A kernel whose modules have jump labels."""

    def __init__(self) -> None:
        self.memory = KernelMemory(layouts=WITH_LABELS)
        self.memory.symbols.addresses |= {"_stext": BASE, "_etext": BASE + 0x1000}
        self.modules = Modules(self.memory.space, self.memory.symbols)

    def add(self, name: bytes, labels: int, *, count: int | None = None) -> list[int]:
        """This adds a module with so many labels, which says that it has another number of them."""
        table = self.memory.allocate_bytes(16 * labels)
        module = self.memory.add_module(name, base=table, sizes=[0x1000])  # the sites lie behind
        for number in range(labels):
            self.memory.write(table + 16 * number, struct.pack("<iiq", 0x100, 0x200, 0))
        self.memory.u64(module + 0x200, table)
        self.memory.u32(module + 0x208, labels if count is None else count)
        return [table + 16 * number + 0x100 for number in range(labels)]

    def sites(self) -> PatchSites:
        code = KnownCode(self.memory.space, self.memory.symbols, self.modules)
        modules = self.modules.modules().rows.values()
        return PatchSites(
            *(self.memory.space, self.memory.symbols),
            code=code,
            architecture="x86_64",
            modules=modules,
        )


def test_a_modules_labels_are_sites() -> None:
    kernel = Kernel()
    labels = kernel.add(b"one", 3)
    sites = kernel.sites()
    assert list(sites.within(0, 1 << 64)) == labels
    assert sites.gaps == []


@pytest.mark.parametrize("count", [0xFFFF_FFFF, 1 << 21])
def test_more_labels_than_there_can_be_are_a_gap_and_are_not_read(count: int) -> None:
    kernel = Kernel()
    kernel.add(b"lies", 1, count=count)
    honest = kernel.add(b"honest", 2)
    sites = kernel.sites()
    (gap,) = sites.gaps
    assert f"{count} entries" in gap.reason
    assert list(sites.within(0, 1 << 64)) == honest


def test_the_bound_is_one_for_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.hooks.patch_sites._MAX_ENTRIES", 5)
    kernel = Kernel()
    for name in (b"one", b"two", b"three"):
        kernel.add(name, 2)
    sites = kernel.sites()
    assert len(list(sites.within(0, 1 << 64))) == 4
    assert [gap.reason for gap in sites.gaps] == ["2 entries, where there is room for 1"]
