"""Symbols of modules: told as the kernel tells them, and whatever a guest claims, an answer."""

import struct
from collections.abc import Callable

import pytest

from qvmi.addr import Va
from qvmi.errors import LayoutNotFound
from qvmi.semantics.linux.modules.module import Modules
from qvmi.semantics.linux.modules.module_symbols import ModuleSymbol, ModuleSymbols
from qvmi.semantics.linux.structures.list import ListWalk
from tests.unit.semantics.linux.loaded_modules import (
    BASE,
    HEAD,
    LoadedModules,
    ModuleSpec,
    offset,
)

TEXT = 0xFFFF_FFFF_C100_0000
DATA = 0xFFFF_FFFF_C200_0000
BRIDGE = ModuleSpec(
    "bridge",
    [
        ("br_init", TEXT, "t", False),
        ("br_init_alias", TEXT, "t", True),
        ("br_forward", TEXT + 0x100, "t", True),
        ("br_table", DATA + 0x40, "d", False),
    ],
    [(TEXT, 0x2000), (DATA, 0x1000)],
)
VETH = ModuleSpec(
    "veth", [("veth_open", TEXT + 0x10000, "t", False)], [(TEXT + 0x10000, 64), (0, 0)]
)


def walk(memory: LoadedModules) -> ListWalk[ModuleSymbol]:
    return reader(memory).symbols()


def reader(memory: LoadedModules) -> ModuleSymbols:
    space = memory.space()
    return ModuleSymbols(space, memory.symbols, Modules(space, memory.symbols))


def lines(found: ListWalk[ModuleSymbol]) -> list[str]:
    return [f"{one.address:x} {one.type} {one.name} [{one.module}]" for one in found.rows.values()]


def reasons(found: ListWalk[ModuleSymbol]) -> list[str]:
    return [gap.reason for gap in found.gaps]


def test_are_told_with_a_capital_where_they_are_exported_by_that_very_name() -> None:
    found = walk(LoadedModules(BRIDGE, VETH))
    assert lines(found) == [
        f"{TEXT:x} t br_init [bridge]",
        f"{TEXT:x} T br_init_alias [bridge]",
        f"{TEXT + 0x100:x} T br_forward [bridge]",
        f"{DATA + 0x40:x} d br_table [bridge]",
        f"{TEXT + 0x10000:x} t veth_open [veth]",
    ]
    assert (found.gaps, found.retries) == ([], 0)


@pytest.mark.parametrize("mapped", [True, False])
def test_are_the_same_where_memory_has_to_be_copied(*, mapped: bool) -> None:
    assert len(walk(LoadedModules(BRIDGE, VETH, mapped=mapped)).rows) == 5


def test_before_5_2_the_letter_is_in_the_symbol_itself() -> None:
    memory = LoadedModules(BRIDGE)
    del memory.layouts["mod_kallsyms"][1]["typetab"]
    assert [one.type for one in walk(memory).rows.values()] == ["t", "T", "T", "d"]


def test_exports_may_be_given_as_pointers() -> None:
    memory = LoadedModules(BRIDGE)
    memory.layouts["kernel_symbol"] = (24, {"name": 0, "value": 8})
    name = memory.put(b"br_init\0")
    table = memory.put(struct.pack("<QQQ", name, TEXT, 0))
    memory.poke(memory.at["bridge"] + offset("module", "syms"), "QI", table, 1)
    assert [one.type for one in walk(memory).rows.values()] == ["T", "t", "t", "d"]


def test_a_layout_that_cannot_be_is_refused() -> None:
    memory = LoadedModules(BRIDGE)
    memory.layouts["kernel_symbol"] = (6, {"value_offset": 0, "name_offset": 4})
    with pytest.raises(LayoutNotFound):
        reader(memory)


def test_a_name_of_other_bytes_than_ascii_is_escaped() -> None:
    memory = LoadedModules(ModuleSpec("odd", [("\x1b[31m\xff", TEXT, "t", False)]))
    assert [one.name for one in walk(memory).rows.values()] == ["\x1b[31m\\xff"]


def test_a_module_without_symbols_has_none() -> None:
    memory = LoadedModules(BRIDGE, VETH)
    memory.poke(memory.at["bridge"] + offset("module", "kallsyms"), "Q", 0)
    found = walk(memory)
    assert [one.module for one in found.rows.values()] == ["veth"]
    assert not found.gaps


@pytest.mark.parametrize(
    ("field", "form", "value", "reason"),
    [
        ("num_symtab", "I", 0xFFFFFFFF, "too many"),
        ("num_symtab", "I", (1 << 17) + 1, "too many"),
        ("num_symtab", "I", 1 << 17, "of the names"),
        ("symtab", "Q", 0, "cannot translate"),
        ("symtab", "Q", (1 << 64) - 8, "cannot translate"),
        ("strtab", "Q", 0x1234, "cannot translate"),
        ("strtab", "Q", BASE + (8 << 20) - 4, "cannot translate"),
        ("typetab", "Q", 0xDEAD, "cannot translate"),
    ],
)
def test_a_table_that_cannot_be_is_a_gap_and_the_other_modules_are_read(
    field: str, form: str, value: int, reason: str
) -> None:
    memory = LoadedModules(BRIDGE, VETH)
    memory.poke(memory.kallsyms["bridge"] + offset("mod_kallsyms", field), form, value)
    found = walk(memory)
    assert [one.module for one in found.rows.values()] == ["veth"]
    (gap,) = found.gaps
    assert (gap.structure, gap.address) == ("module.kallsyms", memory.at["bridge"])
    assert "bridge: " in gap.reason
    assert reason in gap.reason
    assert found.retries == 3


def test_a_name_without_an_end_is_a_gap() -> None:
    memory = LoadedModules(BRIDGE)
    strtab = memory.put(b"x" * 4096)
    memory.poke(memory.kallsyms["bridge"] + offset("mod_kallsyms", "strtab"), "Q", strtab)
    assert "no end" in reasons(walk(memory))[0]


@pytest.mark.parametrize("name_at", [0xFFFFFFFF, 1 << 25])
def test_a_name_far_away_is_a_gap(name_at: int) -> None:
    memory = LoadedModules(BRIDGE)
    symtab = memory.put(bytes(24) + struct.pack("<IBBHQQ", name_at, 0, 0, 1, TEXT, 0))
    memory.poke(memory.kallsyms["bridge"], "QI", symtab, 2)
    assert "of the names" in reasons(walk(memory))[0]


def test_more_exports_than_there_can_be_are_a_gap() -> None:
    memory = LoadedModules(BRIDGE)
    memory.poke(memory.at["bridge"] + offset("module", "num_syms"), "I", 1 << 20)
    assert "exported symbols" in reasons(walk(memory))[0]


def test_all_modules_together_have_no_more_symbols_than_is_bearable() -> None:
    """Sixty modules share one table of 40,000 entries: the guest's memory is small, its claim large."""
    specs = [ModuleSpec(f"m{n}") for n in range(60)]
    memory = LoadedModules(*specs)
    strtab = memory.put(b"\0x\0")
    table = memory.put(struct.pack("<IBBHQQ", 1, 116, 0, 1, TEXT, 0) * 40_000)
    types = memory.put(b"t" * 40_000)
    for kallsyms in memory.kallsyms.values():
        memory.poke(kallsyms, "QQQQ", table, 40_000, strtab, types)
    found = walk(memory)
    assert "too many" in reasons(found)[-1]
    assert len({gap.address for gap in found.gaps}) == 60 - (1 << 20) // 40_000


def change_during(memory: LoadedModules, change: Callable[[], None], *, reads_of: int) -> None:
    """This makes a change right before some memory is read for the first time."""

    def before(pa: int) -> None:
        if pa == reads_of - BASE:
            memory.ram.before_read = None
            change()

    memory.ram.before_read = before


def test_tables_that_are_replaced_meanwhile_are_read_again() -> None:
    memory = LoadedModules(BRIDGE, VETH, mapped=False)
    symtab = memory.ram.read_u64(memory.kallsyms["bridge"] - BASE)
    pointer = memory.at["bridge"] + offset("module", "kallsyms")
    other = memory.kallsyms["veth"]
    change_during(memory, lambda: memory.poke(pointer, "Q", other), reads_of=symtab)
    found = walk(memory)
    assert {one.name for one in found.rows.values()} == {"veth_open"}
    assert (found.gaps, found.retries) == ([], 1)


def test_a_module_that_is_gone_meanwhile_leaves_no_gap() -> None:
    memory = LoadedModules(BRIDGE, VETH, mapped=False)

    def unload() -> None:
        memory.link(HEAD, [memory.at["veth"] + offset("module", "list")])
        memory.poke(memory.kallsyms["bridge"], "Q", 0)

    change_during(memory, unload, reads_of=memory.kallsyms["bridge"])
    found = walk(memory)
    assert [one.module for one in found.rows.values()] == ["veth"]
    assert not found.gaps
    assert found.retries


@pytest.mark.parametrize(
    ("va", "name"),
    [
        (TEXT, "br_init"),
        (TEXT + 0xFF, "br_init"),
        (TEXT + 0x100, "br_forward"),
        (TEXT + 0x1FFF, "br_forward"),
        (DATA + 0x40, "br_table"),
        (DATA + 0xFFF, "br_table"),
        (TEXT + 0x10001, "veth_open"),
    ],
)
def test_the_nearest_is_the_first_of_those_at_the_last_address_before(va: int, name: str) -> None:
    found = reader(LoadedModules(BRIDGE, VETH)).nearest(Va(va))
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("va", [0, TEXT - 1, TEXT + 0x2000, DATA, DATA + 0x3F, DATA + 0x1000])
def test_nothing_is_near_outside_of_a_part_or_before_its_first_symbol(va: int) -> None:
    assert reader(LoadedModules(BRIDGE, VETH)).nearest(Va(va)) is None
