"""Loaded modules over structures written by hand."""

import pytest

from qvmi.addr import Va
from qvmi.errors import CorruptTable, LayoutNotFound, SymbolNotFound, WalkFailed
from qvmi.semantics.guest_os import Module
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.structures.list import ListWalk
from tests.synthetic.kernel_memory import LAYOUTS, OLD_LAYOUTS, KernelMemory

BASE = 0xFFFF_FFFF_C000_0000
PARTS = [0x5000, 0x2000, 0x1000, 0x1000, 0x3000, 0x400, 0x800]


def modules_of(memory: KernelMemory) -> ListWalk[Module]:
    return Modules(memory.space, memory.symbols).modules()


def test_a_module_has_all_its_fields() -> None:
    memory = KernelMemory()
    module = memory.add_module(b"nf_tables", base=BASE, sizes=PARTS)
    assert list(modules_of(memory).rows.values()) == [
        Module("nf_tables", Va(BASE), sum(PARTS), "live", Va(module))
    ]


def test_before_6_4_a_module_has_a_core_and_an_init_part() -> None:
    memory = KernelMemory(layouts=OLD_LAYOUTS)
    module = memory.add_module(b"ext4", base=BASE, sizes=[0xA000, 0x1000])
    assert list(modules_of(memory).rows.values()) == [
        Module("ext4", Va(BASE), 0xB000, "live", Va(module))
    ]


def test_the_newest_module_comes_first() -> None:
    memory = KernelMemory()
    for name in (b"first", b"second"):
        memory.add_module(name, base=BASE, sizes=PARTS)
    assert [row.name for row in modules_of(memory).rows.values()] == ["second", "first"]


def test_no_modules_are_no_gap() -> None:
    walk = modules_of(KernelMemory())
    assert (walk.rows, walk.gaps) == ({}, [])


@pytest.mark.parametrize(("number", "state"), [(0, "live"), (1, "coming"), (2, "going")])
def test_a_module_is_told_in_each_state_it_is_shown_in(number: int, state: str) -> None:
    memory = KernelMemory()
    memory.add_module(b"x", base=BASE, sizes=PARTS, state=number)
    assert [row.state for row in modules_of(memory).rows.values()] == [state]


def test_a_module_not_formed_yet_is_left_out_without_a_gap() -> None:
    memory = KernelMemory()
    memory.add_module(b"old", base=BASE, sizes=PARTS)
    memory.add_module(b"unformed", base=0, sizes=[], state=3)
    memory.add_module(b"new", base=BASE, sizes=PARTS)
    walk = modules_of(memory)
    assert ([row.name for row in walk.rows.values()], walk.gaps) == (["new", "old"], [])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"x" * 55, "x" * 55),
        (b"\xff", "\\xff"),
        (b"a\x1b[0m\n", "a\x1b[0m\n"),
        (b"a\0b", "a"),
    ],
)
def test_a_name_is_decoded_once(name: bytes, shown: str) -> None:
    memory = KernelMemory()
    memory.add_module(name, base=BASE, sizes=PARTS)
    assert [row.name for row in modules_of(memory).rows.values()] == [shown]


@pytest.mark.parametrize(
    ("name", "sizes", "state"),
    [
        (b"bad", PARTS, 4),
        (b"bad", PARTS, 0xFFFF_FFFF),
        (b"", PARTS, 0),
        (b"x" * 56, PARTS, 0),
        (b"bad", [0xFFFF_FFFF] * 7, 0),
    ],
)
def test_what_cannot_be_a_module_is_a_gap_and_the_others_are_told(
    name: bytes, sizes: list[int], state: int
) -> None:
    memory = KernelMemory()
    memory.add_module(b"before", base=BASE, sizes=PARTS)
    bad = memory.add_module(name, base=BASE, sizes=sizes, state=state)
    memory.add_module(b"behind", base=BASE, sizes=PARTS)
    walk = modules_of(memory)
    assert [row.name for row in walk.rows.values()] == ["behind", "before"]
    assert [gap.address for gap in walk.gaps] == [bad]


def test_a_list_of_modules_that_cannot_be_read_fails() -> None:
    memory = KernelMemory()
    memory.symbols.addresses["modules"] = 0x1000
    with pytest.raises(WalkFailed, match=r"module\.list"):
        modules_of(memory)


def test_a_kernel_without_modules_is_said_so() -> None:
    memory = KernelMemory()
    del memory.symbols.addresses["modules"]
    with pytest.raises(SymbolNotFound, match="modules"):
        modules_of(memory)


@pytest.mark.parametrize(
    ("layouts", "missing"),
    [
        ({**LAYOUTS, "module": (0x300, {"state": 0, "list": 8, "name": 0x18})}, "core_layout"),
        ({name: one for name, one in LAYOUTS.items() if name != "module_memory"}, "module_memory"),
        (
            {name: one for name, one in OLD_LAYOUTS.items() if name != "module_layout"},
            "module_layout",
        ),
    ],
)
def test_a_missing_layout_is_named(
    layouts: dict[str, tuple[int, dict[str, int]]], missing: str
) -> None:
    memory = KernelMemory()
    memory.symbols.layouts = layouts
    with pytest.raises(LayoutNotFound, match=missing):
        modules_of(memory)


@pytest.mark.parametrize("size", [0, 2, 1 << 31])
def test_a_size_no_part_can_have_is_refused(size: int) -> None:
    memory = KernelMemory()
    memory.symbols.layouts = {**LAYOUTS, "module_memory": (size, {"base": 8, "size": 0x18})}
    with pytest.raises(CorruptTable):
        modules_of(memory)
