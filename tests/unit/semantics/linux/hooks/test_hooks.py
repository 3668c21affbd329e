"""Hooks in a kernel made by hand that says it has more of them than there can be."""

import struct
from typing import Final

import pytest

from qvmi.addr import Pa, Va
from qvmi.arch.paging import X86_64_4_LEVEL
from qvmi.semantics.linux.hooks.hook_places import HookPlaces
from qvmi.semantics.linux.hooks.rodata import ConstantPointers
from qvmi.semantics.linux.hooks.tracepoint import Tracepoints
from qvmi.semantics.linux.image.kernel_image import KernelImage
from qvmi.semantics.linux.modules.module import Modules
from tests.synthetic.kernel_memory import DIRECT_MAP, LAYOUTS, KernelMemory

CODE: Final = 0xFFFF_FFFF_C000_0000
_, MEMBERS = LAYOUTS["module"]
WITH_TRACEPOINTS: Final = {
    **LAYOUTS,
    "module": (0x300, {**MEMBERS, "tracepoints_ptrs": 0x200, "num_tracepoints": 0x208}),
    "tracepoint": (0x40, {"funcs": 0x20}),
    "tracepoint_func": (0x18, {"func": 0}),
}


class Traced:
    """A kernel whose modules have tracepoints, at each of which something is called."""

    def __init__(self) -> None:
        self.memory = KernelMemory(layouts=WITH_TRACEPOINTS)
        self.places = HookPlaces()

    def add(self, name: bytes, *targets: int, count: int | None = None) -> None:
        """This adds a module with one tracepoint, which says that it has another number of them."""
        module = self.memory.add_module(name, base=CODE, sizes=[0x1000])
        table, tracepoint = self.memory.allocate_bytes(64), self.memory.allocate("tracepoint")
        funcs = self.memory.allocate_bytes(0x18 * (len(targets) + 1))
        self.memory.write(table, struct.pack("<i", tracepoint - table))
        self.memory.u64(tracepoint + 0x20, funcs)
        for number, target in enumerate(targets):
            self.memory.u64(funcs + 0x18 * number, target)
        self.memory.u64(module + 0x200, table)
        self.memory.u32(module + 0x208, 1 if count is None else count)

    def targets(self) -> list[int]:
        space, symbols = self.memory.space, self.memory.symbols
        modules = Modules(space, symbols).modules().rows.values()
        Tracepoints(space, symbols).hooks(modules, self.places)
        return [one.target for one in self.places.found]


def test_what_is_called_at_a_modules_tracepoint_is_a_hook() -> None:
    traced = Traced()
    traced.add(b"one", 1, 2)
    assert (traced.targets(), traced.places.gaps) == ([1, 2], [])


def test_more_tracepoints_than_there_can_be_are_a_gap_and_hide_no_others() -> None:
    traced = Traced()
    traced.add(b"honest", 1)
    traced.add(b"lies", 2, count=0xFFFF_FFFF)
    assert traced.targets() == [1]
    assert [gap.structure for gap in traced.places.gaps] == ["tracepoint"]


def test_a_chain_without_end_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.hooks.tracepoint.MAX_CHAIN", 2)
    traced = Traced()
    traced.add(b"one", 1, 2, 3)
    assert traced.targets() == [1, 2]
    assert "does not end" in traced.places.gaps[0].reason


def test_when_there_are_too_many_hooks_that_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.hooks.hook_places._MAX_PLACES", 2)
    places = HookPlaces()
    for target in (1, 0, 2, 3, 4, 5):
        places.add("table", "", 0, target)
    assert places.is_full
    assert len(places.found) == 3
    assert [gap.reason for gap in places.gaps] == ["more than 2 hooks"]


def constants(size: int, *values: int) -> ConstantPointers:
    """A kernel's constants: so many bytes, with these words at their beginning."""
    memory = KernelMemory()
    start = memory.allocate_bytes(4096)
    for number, value in enumerate(values):
        memory.u64(start + 8 * number, value)
    memory.symbols.addresses |= {"__start_rodata": start, "__end_rodata": start + size}
    image = KernelImage(
        *(Va(DIRECT_MAP), Va(DIRECT_MAP + (1 << 20)), Pa(0), Pa(0), X86_64_4_LEVEL),
        page_table_isolation=False,
        extents=(),
        evidence=(),
    )
    return ConstantPointers(memory.space, memory.symbols, image)


def test_what_is_left_out_of_the_constants_is_told_in_each_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qvmi.semantics.linux.hooks.rodata._MAX_CANDIDATES", 1)
    pointers = constants(4096, CODE, CODE + 8, CODE + 16)
    for _ in range(2):
        places = HookPlaces()
        pointers.hooks(places)
        assert [gap.reason for gap in places.gaps] == ["2 addresses more than are looked at"]


@pytest.mark.parametrize("size", [0, -8, 1 << 30])
def test_constants_of_no_possible_size_are_a_gap(size: int) -> None:
    places = HookPlaces()
    constants(size).hooks(places)
    assert [gap.structure for gap in places.gaps] == ["constants"]
